"""A real deployment of a copy of this checkout, for the acceptance tests."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.errors import NotFound
from pydantic.alias_generators import to_camel

from offline.passwords import Passwords
from operations.engine import cli
from operations.host import docker_daemon
from runtime.address import resolve_host
from runtime.daemon import Daemon
from settings import names
from settings.checks import SEAWEEDFS_MB
from settings.images import ImagesSettings
from tests.shipped import stack_file

ROOT = Path(__file__).parents[2]
NO_DIGESTS = {"minio": {"digest": "none"}, "minioClient": {"digest": "none"}}
"""Images that were built or loaded on this host have no digest."""
HAS_ENGINE = cli.find_cli() is not None


def has_images(store: str) -> bool:
    """Return whether the host has the images of a stack with this object store, under the default names."""
    daemon = Daemon(resolve_host())
    if docker_daemon.docker_problem(daemon):
        return False
    return all(daemon.has_image(image.ref) for image in ImagesSettings().pulled([store]))


HAS_MINIO = has_images("minio")
"""Whether tests with MinIO can run: there is no package of MinIO."""
WITH_LONG = os.environ.get("LONG") == "1"
"""Whether every test runs; see docs/adr/0018-lengths-of-tests.md."""
WITH_CI = WITH_LONG or os.environ.get("CI", "").lower() in ("1", "true")
"""Whether the tests run that CI runs at each change. Most CI systems set the variable to `true`."""


PORTS = (20_000, 32_000)
"""Below the ports that Linux gives to outgoing connections: one of another test would take the port of a stack that is
down for a moment."""


def free_port() -> int:
    """Return a port of this machine that nothing uses."""
    while True:
        port = secrets.choice(range(*PORTS))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Deployment:
    """One stack with a separate checkout, backend and home. Changes nothing that it did not create."""

    folder: Path
    settings: str
    """The stack whose shipped stack file is copied: dev, staging or prod."""
    stack: str = field(default_factory=lambda: f"t{secrets.token_hex(3)}")
    engineless: bool = not HAS_ENGINE
    """Whether it is an engine-less deployment."""
    host: str | None = None
    """The Docker host, if it is not the one that the environment selects."""
    _exports: dict[tuple[tuple[str, str], ...], dict[str, str]] = field(default_factory=dict, init=False)
    _printed: dict[tuple[str, str], str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.checkout = self.folder / "checkout"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        (self.checkout / ".venv").symlink_to(ROOT / ".venv")
        self.file = self.checkout / f"Pulumi.{self.stack}.yaml"
        self.file.write_text(stack_file(self.settings))
        if self.host:
            document = yaml.safe_load(self.file.read_text())
            document["config"]["docker:host"] = self.host
            self.file.write_text(yaml.safe_dump(document, sort_keys=False))
        (self.folder / "state").mkdir()
        self.environment = {
            # `make test` passes its own variables on, such as ARGS.
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("PULUMI_CONFIG", "MAKE")) and key not in ("ARGS", "MFLAGS")
            },
            "PULUMI_BACKEND_URL": (self.folder / "state").as_uri(),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_STATE_HOME": str(self.folder / "home"),
            "ENGINELESS": "1" if self.engineless else "0",
            "STACK": self.stack,
            "YES": "1",
        }
        if self.stack not in ("dev", "staging", "prod"):
            # Images that were built or loaded here have no digest, which the policy refuses outside dev.
            self.environment["POLICY"] = str(ROOT / "tests" / "stack" / "without-digests.json")
        self.api = docker.APIClient(base_url=resolve_host(self.host), version="auto")

    @property
    def url(self) -> str:
        """The URL of a stack without Traefik, as `make url` prints it, without starting Python each time."""
        return f"http://127.0.0.1:{self.values['mlflow:server']['port']}"

    @property
    def store(self) -> str:
        """The object store in use."""
        document = yaml.safe_load(self.file.read_text())
        return str(document["config"].get("mlflow:objectStore", {}).get("kind", "minio"))

    @property
    def any_store(self) -> str:
        """MinIO if its images are on the host, otherwise SeaweedFS: there is no package of MinIO."""
        return "minio" if has_images("minio") else "seaweedfs"

    @property
    def values(self) -> dict[str, Any]:
        """The settings in the stack file, with the keys as written there."""
        found: dict[str, Any] = yaml.safe_load(self.file.read_text())["config"]
        return found

    @property
    def postgres_major(self) -> int:
        """The major version of the Postgres data of this stack."""
        found = (names.postgres_major(self.stack, volume) for volume in Daemon(resolve_host()).volumes())
        return next(major for major in found if major)

    def name(self, service: str) -> str:
        return names.docker_name(self.stack, service)

    def use(self, store: str) -> None:
        """Choose the object store, and packages images if the host lacks the images for it."""
        self.set("objectStore.kind", store)
        if store == "seaweedfs":
            self.set("objectStore.memoryMb", SEAWEEDFS_MB)
        if not has_images(store):
            self.set("images.source", "packages")

    def set(self, path: str, value: object) -> None:
        """Set `section.key` in the stack file."""
        section, _, key = path.partition(".")
        name = f"mlflow:{section}"
        document = yaml.safe_load(self.file.read_text())
        document["config"][name] = {**self.values.get(name, {}), key: value} if key else value
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))

    def set_secret(self, key: str, value: str) -> None:
        """Set a secret in the stack file: encrypted, unless the deployment is engine-less."""
        if self.engineless:
            self.set(key, value)
        else:
            self.pulumi("config", "set", "--secret", key, stdin=value)

    def make(self, verb: str, *, ok: bool | None = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `make VERB` without a terminal. Assert that it succeeds or, if not `ok`, that it fails. None: either."""
        done = subprocess.run(
            ["make", "-s", verb],
            cwd=self.checkout,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ok in (None, done.returncode == 0), f"make {verb}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    @contextmanager
    def begun(self, moment: Callable[[str], bool], *verb: str) -> Iterator[subprocess.Popen[str]]:
        """Start `make up`, or another verb, and yield its process once it prints a line for which `moment` is true."""
        with subprocess.Popen(
            ["make", "-s", *(verb or ["up"])],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            assert running.stdout
            if not any(moment(line) for line in running.stdout):
                pytest.fail("the command ended without printing the awaited line, so this test has tested nothing")
            yield running

    def pulumi(self, *arguments: str, ok: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run plain `pulumi` with the exports of `make env`. Assert that it succeeds or, if not `ok`, that it fails."""
        done = subprocess.run(
            ["pulumi", *arguments, "--stack", self.stack, "--non-interactive"],
            cwd=self.checkout,
            env={**self.environment, **self.exports},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == ok, f"pulumi {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done

    def printed(self, verb: str) -> str:
        """Return what a verb prints. It runs again only if the stack file has changed."""
        key = verb, self.file.read_text()
        if key not in self._printed or self.engineless:
            self._printed[key] = self.make(verb).stdout
        return self._printed[key]

    @property
    def exports(self) -> dict[str, str]:
        """The exports of `make env`, which also creates the stack. It runs again only with another environment."""
        key = tuple(sorted(self.environment.items()))
        if key not in self._exports:
            lines = self.make("env").stdout.splitlines()
            pairs = [line.removeprefix("export ").split("=", 1) for line in lines if line]
            self._exports[key] = {name: value.strip("'") for name, value in pairs}
        return self._exports[key]

    def plan(self) -> dict[str, str]:
        """Return what an update would change: logical name to operation, without unchanged resources."""
        steps = json.loads(self.pulumi("preview", "--json").stdout)["steps"]
        return {
            step["urn"].rpartition("::")[2]: step["op"]
            for step in steps
            if step["op"] in ("create", "update", "delete", "replace")
        }

    def client_day(self, uri: str, megabytes: int) -> str:
        """Run `client_day.py` with the MLflow client of this interpreter, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", ROOT / "tests" / "stack" / "client_day.py", str(megabytes)],
            cwd=self.folder,
            env={**self.environment, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.inspect_container(self.name(service))
        return found

    def run(self, service: str, *command: str) -> tuple[int, str]:
        """Run a command in a container; return its exit code and output."""
        return Daemon(resolve_host(self.host)).run(self.name(service), list(command))

    def containers(self) -> list[str]:
        label = f"{names.STACK_LABEL}={self.stack}"
        return sorted(
            found["Names"][0].lstrip("/") for found in self.api.containers(all=True, filters={"label": label})
        )

    def logs(self) -> str:
        """Return the last log lines of every container, for the message of a failure."""
        daemon = Daemon(resolve_host(self.host))
        return "\n".join(f"--- {name}\n{daemon.logs(name)}" for name in self.containers())

    def credentials(self) -> dict[str, str]:
        """Return every generated secret by its key in the config."""
        if self.engineless:
            return {to_camel(name.replace("-", "_")): value for name, value in self.passwords.read().items()}
        # The deployment that generated a secret has written it into the stack file.
        found = json.loads(self.pulumi("config", "--show-secrets", "--json").stdout)
        return {key.removeprefix("mlflow:"): entry["value"] for key, entry in found.items() if entry["secret"]}

    @property
    def passwords(self) -> Passwords:
        """The generated passwords of an engine-less deployment."""
        return Passwords(self.folder / "home" / "pulumi-mlflow" / "rehearsal" / f"{self.stack}.json")

    def remove(self) -> None:
        """Remove everything of this stack from the Docker host."""
        label = {"label": f"{names.STACK_LABEL}={self.stack}"}
        # The container of a restore has no label, because it is not part of the deployment.
        ours = self.api.containers(all=True, filters={"name": f"^/mlflow-{self.stack}-"})
        for container in [*self.api.containers(all=True, filters=label), *ours]:
            with suppress(NotFound):
                self.api.remove_container(container["Id"], force=True, v=True)
        for network in self.api.networks(filters=label):
            self.api.remove_network(network["Id"])
        for volume in self.api.volumes()["Volumes"] or []:
            if volume["Name"].startswith(f"mlflow-{self.stack}-"):
                self.api.remove_volume(volume["Name"])
