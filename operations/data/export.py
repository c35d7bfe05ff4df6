"""`make export`: copy the database and the artifacts to a Postgres and an S3 elsewhere, such as those of a cluster."""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from operations.common.checkout import ROOT
from operations.common.console import StopError, confirmed, flag, make, output, progress
from operations.common.stack import Stack
from operations.host import containers
from operations.host.once import backend, run_once
from operations.host.servers import servers
from operations.observe.status import require_containers
from settings import names

REQUIRED = ("PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD", "S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
DEFAULTS = {"PGPORT": "5432", "PGSSLMODE": "prefer", "S3_ENDPOINT_URL": "", "AWS_DEFAULT_REGION": "us-east-1"}
KNOWN = (*REQUIRED, *DEFAULTS)
RULES = {
    "PGPORT": (re.compile(r"\d{1,5}"), "a port number"),
    "PGSSLMODE": (
        re.compile("disable|allow|prefer|require|verify-ca|verify-full"),
        "a value of libpq, such as require",
    ),
    "S3_ENDPOINT_URL": (re.compile(r"(https?://\S+)?"), "empty, or such as https://s3.example.com"),
    "S3_BUCKET": (re.compile(r"[^/:]*"), "the name of a bucket, without a folder"),
}
PAGE = "docs/operations/kubernetes.md"
FILES = "/run/export"
"""Folder of the scripts and passwords in the containers."""


@dataclass(frozen=True)
class Target:
    """Where the data go: the variables of the file TARGET=, completed with the defaults."""

    values: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Target":
        """Read the file; raise `StopError` with everything that is wrong with it."""
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise StopError(f"TARGET={path}: {error.strerror}; {PAGE}") from None
        except UnicodeDecodeError:
            raise StopError(f"TARGET={path}: is not UTF-8; {PAGE}") from None
        values, problems = dict(DEFAULTS), []
        for number, line in enumerate(lines, 1):
            # No part of a value is printed: it may be a password.
            try:
                words = shlex.split(line.strip().removeprefix("export "), comments=True)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
                continue
            key, equals, value = " ".join(words).partition("=")
            if words and (not equals or not re.fullmatch(r"\w+", key)):
                problems.append(f"line {number}: must be KEY=value")
            elif words and (key not in KNOWN or len(words) > 1):
                problems.append(
                    f"line {number}: {key}: " + ("quote a value with spaces" if key in KNOWN else "unknown")
                )
            values[key] = value
        problems += [f"{key}: is missing" for key in REQUIRED if not values.get(key)]
        problems += [
            f"{key}: must be {rule}"
            for key, (pattern, rule) in RULES.items()
            if not pattern.fullmatch(values.get(key, ""))
        ]
        if problems:
            raise StopError(
                f"TARGET={path}:\n  " + "\n  ".join(problems) + f"\n  variables: {', '.join(KNOWN)}; {PAGE}"
            )
        return cls(values)

    @property
    def pgpass(self) -> str:
        """The password file for libpq."""
        escaped = re.sub(r"([:\\])", r"\\\1", self.values["PGPASSWORD"])
        return f"*:*:*:*:{escaped}\n"

    @property
    def credentials(self) -> str:
        """The credentials file for S3."""
        pairs = [f"{key.lower()} = {self.values[key]}" for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        return "\n".join(["[target]", *pairs, ""])


def export(stack: Stack) -> None:
    """Copy everything to the target in the file `TARGET=`, and compare. `DRY_RUN=1` only checks the target.

    The artifacts are copied first, while the server runs, and those that were written meanwhile after it has stopped.
    The data of this stack do not change. The server stays stopped.
    """
    dry = flag("DRY_RUN")
    given = os.environ.get("TARGET")
    if not given:
        raise StopError(f"TARGET= is not set\n  type: {make('export', stack.name)} TARGET=<file>; {PAGE}")
    target = Target.read(Path(given).expanduser())
    require_containers(stack)
    _require_alone(stack)
    _check(stack, target)
    if dry:
        progress("the target can be used; nothing was changed")
        return
    question = f"This stops the server of {stack.name} after a first copy of the artifacts. It stays stopped."
    if not confirmed(question):
        raise StopError("nothing was changed")
    _artifacts(stack, target, "copy")
    _finish(stack, target)
    output(
        f"{stack.name} is copied, and equal: database {target.values['PGHOST']}, bucket {target.values['S3_BUCKET']}\n"
        f"  its server is stopped; to start it again, type: {make('up', stack.name)}\n"
        f"  what the new server needs: {PAGE}"
    )


def _check(stack: Stack, target: Target) -> None:
    """Check the database and the bucket; raise `StopError` with everything that cannot be used."""
    problems = []
    for check in (_database, _artifacts):
        try:
            check(stack, target, "check")
        except StopError as error:
            problems.append(str(error))
    if problems:
        raise StopError("\n".join(problems) + f"\n  nothing was changed; {PAGE}")


def _require_alone(stack: Stack) -> None:
    """Raise `StopError` if there is no server, or if another operation, such as a restore, is running."""
    if not servers(stack).deployed:
        raise StopError(f"{stack.name} has no server; type: {make('up', stack.name)}")
    containers.require_no_operation(stack.daemon, stack.name)


def _finish(stack: Stack, target: Target) -> None:
    """Stop the server and copy the rest. If that fails, start the servers that ran before, and raise `StopError`."""
    deployed = servers(stack)
    ran = deployed.running
    progress("stopping the server")
    complete = False
    try:
        # Otherwise Docker would start it again when the daemon restarts, and it could write what is not copied.
        deployed.stop(for_good=True)
        _artifacts(stack, target, "finish")
        _database(stack, target, "copy")
        complete = True
    finally:
        if not complete:
            if ran:
                deployed.restart()
            progress("the target is incomplete" + ("; the server was started again" if ran else ""))


def _database(stack: Stack, target: Target, command: str) -> None:
    """Check or copy the database; raise `StopError` if that fails."""
    postgres = stack.daemon.inspect(names.docker_name(stack.name, "postgres"))
    if postgres is None:
        raise StopError(f"{stack.name} has no database; type: {make('up', stack.name)}")
    environment = {key: target.values[key] for key in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSSLMODE")}
    environment["SOURCE_HOST"] = names.docker_name(stack.name, "postgres")
    trusted = _authority(stack)
    environment["SOURCE_SSLMODE"] = "verify-full" if trusted else "disable"
    files = trusted | {
        "database.sh": _asset("export/database.sh"),
        "source.pgpass": _secret(stack, "pgpass"),
        "target.pgpass": target.pgpass,
    }
    if _run(stack, postgres["Image"], ["bash", f"{FILES}/database.sh", command], environment, files):
        raise StopError(
            "the database was not copied; the reason is above"
            if command == "copy"
            else "the database of the target cannot be used; the reason is above"
        )


def _artifacts(stack: Stack, target: Target, command: str) -> None:
    """Check the bucket, or copy the artifacts that it lacks; raise `StopError` if that fails."""
    deployed = servers(stack)
    theirs = deployed.environment
    environment = {key: value for key, value in theirs.items() if key.startswith("AWS_") and "CREDENTIALS" not in key}
    environment |= {
        "SOURCE_ENDPOINT": theirs["MLFLOW_S3_ENDPOINT_URL"],
        "SOURCE_BUCKET": theirs["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").partition("/")[0],
        "TARGET_ENDPOINT": target.values["S3_ENDPOINT_URL"],
        "TARGET_BUCKET": target.values["S3_BUCKET"],
        "AWS_DEFAULT_REGION": target.values["AWS_DEFAULT_REGION"],
        "AWS_SHARED_CREDENTIALS_FILE": f"{FILES}/credentials",
        "HOME": "/tmp",  # noqa: S108 - inside the container
    }
    ours = re.sub(r"(?m)^\[.*\]", "[source]", _secret(stack, "aws-credentials"))
    trusted = _authority(stack)
    if trusted:
        environment["SOURCE_AUTHORITY"] = f"{FILES}/{names.AUTHORITY_FILE}"
    files = trusted | {
        "artifacts.py": _asset("export/artifacts.py"),
        "copy_artifacts.py": _asset("copy/copy_artifacts.py"),
        "credentials": f"{ours}\n{target.credentials}",
    }
    if _run(stack, deployed.images[0], ["python", f"{FILES}/artifacts.py", command], environment, files):
        raise StopError(
            "the bucket of the target cannot be used; the reason is above"
            if command == "check"
            else "the artifacts were not copied; the reason is above"
        )


def _authority(stack: Stack) -> dict[str, str]:
    """Return the authority of the stack's services as a file; empty if they speak plaintext."""
    return {names.AUTHORITY_FILE: _secret(stack, names.AUTHORITY_FILE)} if servers(stack).scheme == "https" else {}


def _asset(path: str) -> str:
    return (ROOT / "assets" / path).read_text()


def _secret(stack: Stack, name: str) -> str:
    """Return a secret file of the server."""
    found = servers(stack).secret(name)
    if found is None:
        raise StopError(f"the server has no secret file {name}; to write it again, type: {make('up', stack.name)}")
    return found.decode()


def _run(stack: Stack, image: str, command: list[str], environment: Mapping[str, str], files: Mapping[str, str]) -> int:
    """Run a command with the files in a container that reaches the stack's services and the outside."""
    return run_once(
        stack,
        names.EXPORT,
        image=image,
        command=command,
        environment=environment,
        files={f"{FILES}/{name}": content for name, content in files.items()},
        networks=["bridge", *backend(stack)],
        host={"ExtraHosts": ["host.docker.internal:host-gateway"]},
    )
