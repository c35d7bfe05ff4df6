"""Run the jobs of a workflow on this machine, each step by its command, with a stand-in for GitHub.

This is no general emulator: it supports the three actions and the expressions that the workflows here use.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from tests.stack.deployment import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"


class Github(ThreadingHTTPServer):
    """The part of GitHub's API that tell.py uses; it stores the comments and issues that it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.comments: list[dict[str, Any]] = []
        self.issues: list[dict[str, Any]] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def github() -> Iterator[Github]:
    with Github() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Github

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        values = dict(pair.split("=") for pair in query.split("&"))
        found = self.server.comments if path.endswith("/comments") else self.server.issues
        if "state" in values:
            found = [one for one in found if one["state"] == values["state"]]
        size, page = int(values["per_page"]), int(values["page"])
        self._answer(found[(page - 1) * size : page * size])

    def do_POST(self) -> None:
        found = self.server.comments if self.path.endswith("/comments") else self.server.issues
        one = {"id": len(found) + 1, "number": len(found) + 1, "state": "open", "user": {"type": "Bot"}, **self._body()}
        found.append(one)
        self._answer(one)

    def do_PATCH(self) -> None:
        found = self.server.comments if "/comments/" in self.path else self.server.issues
        one = found[int(self.path.rpartition("/")[2]) - 1]
        one.update(self._body())
        self._answer(one)

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(body.get("body", "")) > 65536:
            body = {"body": "too long"}
        return body

    def _answer(self, body: object) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        raw = json.dumps(body).encode()
        self.send_response(200 if self.headers["Authorization"] == "Bearer a-token" else 401)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Runner:
    """A machine that runs the jobs of one run of a workflow, one after the other."""

    folder: Path
    repository: Path
    """The repository to check out: the merge of the pull request, or main."""
    context: dict[str, Any]
    """The values of `github.…`, `vars.…` and `secrets.…`."""
    environment: dict[str, str]
    artifacts: Path = field(init=False)
    results: dict[str, str] = field(default_factory=dict)
    """The result of each job: success, failure or skipped."""
    summaries: dict[str, str] = field(default_factory=dict)
    said: str = ""

    def __post_init__(self) -> None:
        self.artifacts = self.folder / "artifacts"
        self.artifacts.mkdir(parents=True)

    def run(self, workflow: str, stack: str) -> None:
        """Run every job whose condition holds, for this stack only; the job of prod is left out."""
        jobs = yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"]
        for name, job in jobs.items():
            if name == "prod":
                continue
            if "STACK" in job.get("env", {}) and "matrix" not in str(job["env"]["STACK"]):
                job["env"]["STACK"] = stack
            values = {
                **self.context,
                "matrix": {"stack": stack},
                "needs": {key: {"result": value} for key, value in self.results.items()},
            }
            needed = [self.results[job["needs"]]] if "needs" in job else []
            if _holds(job.get("if"), values, failed="failure" in needed or "skipped" in needed):
                self.results[name] = "success" if self._job(name, job, values) else "failure"
            else:
                self.results[name] = "skipped"

    def _job(self, name: str, job: dict[str, Any], values: dict[str, Any]) -> bool:
        checkout, summary = self.folder / name, self.folder / f"{name}.summary"
        summary.touch()
        failed = False
        for step in job["steps"]:
            if not _holds(step.get("if"), values, failed=failed):
                continue
            if "uses" in step:
                self._use(step["uses"].partition("@")[0], step.get("with", {}), values, checkout)
                continue
            given = {**job.get("env", {}), **step.get("env", {})}
            done = subprocess.run(
                # A runner calls bash this way if a step names no shell.
                ["bash", "-e", "-c", step["run"]],
                cwd=checkout,
                env={
                    **self.environment,
                    "GITHUB_STEP_SUMMARY": str(summary),
                    **{key: _filled(str(value), values) for key, value in given.items()},
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            self.said += f"{name}, {step['name']}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            failed = failed or done.returncode != 0
        self.summaries[name] = summary.read_text()
        self.said += self.summaries[name]
        return not failed

    def _use(self, action: str, given: dict[str, Any], values: dict[str, Any], checkout: Path) -> None:
        if action == "actions/checkout":
            subprocess.run(["git", "clone", "-q", self.repository, checkout], check=True)
            # The packages of the lock files, as a cache would provide them.
            (checkout / ".venv").symlink_to(ROOT / ".venv")
        elif action == "actions/upload-artifact":
            target = self.artifacts / _filled(given["name"], values)
            target.mkdir()
            shutil.copy(checkout / given["path"], target)
        elif action == "actions/download-artifact":
            shutil.copytree(self.artifacts, checkout / given["path"])
        else:
            raise AssertionError(action)


def _holds(condition: str | None, values: dict[str, Any], *, failed: bool) -> bool:
    """Return whether a job or step runs: its condition holds and, unless that has a status function, nothing failed."""
    written = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", condition or "success()").strip()
    words = written.replace("&&", " and ").replace("||", " or ").replace("!cancelled()", "True")
    words = words.replace("always()", "True").replace("success()", str(not failed))
    names = re.compile(r"\b(?:github|vars|needs|matrix)(?:\.\w+)+")
    holds: bool = eval(names.sub(lambda match: repr(_value(match[0], values)), words))  # noqa: S307 - our own file
    asks = any(word in written for word in ("always()", "cancelled()", "success()"))
    return holds and (asks or not failed)


def _filled(text: str, values: dict[str, Any]) -> str:
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda match: _value(match[1], values), text)


def _value(name: str, values: dict[str, Any]) -> str:
    found: Any = values
    for part in name.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return str(found)


def bare_environment(**more: str) -> dict[str, str]:
    """Return the environment of a runner: of the user who runs the tests, only PATH and HOME."""
    return {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | {"CI": "true"} | more
