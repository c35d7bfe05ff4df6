"""`make export`: copy the database and the artifacts to a Postgres and an S3 elsewhere, such as those of a cluster."""

import io
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operations.common.checkout import ROOT
from operations.common.console import StopError, confirmed, flag, make, output, progress, relay_output
from operations.common.stack import Stack
from operations.host.servers import running_server, servers
from operations.observe.status import require_containers
from settings import names

REQUIRED = ("PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD", "S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
DEFAULTS = {"PGPORT": "5432", "PGSSLMODE": "prefer", "S3_ENDPOINT_URL": "", "AWS_DEFAULT_REGION": "us-east-1"}
PAGE = "docs/operations/kubernetes.md"
UID = 65534
"""User of the containers that copy: nobody."""
SERVER_SECRETS, TARGET_SECRETS = "/run/server-secrets", "/run/export"
ARTIFACTS = f"""
umask 077
sed 's/^\\[.*\\]/[source]/' {SERVER_SECRETS}/aws-credentials >/tmp/credentials
cat {TARGET_SECRETS}/aws-credentials >>/tmp/credentials
exec python {TARGET_SECRETS}/copy_artifacts.py
"""
"""Runs in the MLflow image. The stack's credentials stay in its volume."""


@dataclass(frozen=True)
class Target:
    """Where the data go: the variables of the file TARGET=, completed with the defaults."""

    values: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Target":
        """Read the file; raise `StopError` with everything that is wrong with it."""
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StopError(f"TARGET={path}: {error}; {PAGE}") from None
        values, problems = dict(DEFAULTS), []
        for number, line in enumerate(lines, 1):
            text = line.strip().removeprefix("export ")
            if not text or text.startswith("#"):
                continue
            key, equals, value = text.partition("=")
            if not equals or key not in (*REQUIRED, *DEFAULTS):
                problems.append(f"line {number}: {key}: unknown; the variables are {', '.join((*REQUIRED, *DEFAULTS))}")
            values[key] = re.sub(r"""^(['"])(.*)\1$""", r"\2", value)
        problems += [f"{key}: is missing" for key in REQUIRED if not values.get(key)]
        if problems:
            raise StopError(f"TARGET={path}:\n  " + "\n  ".join(problems) + f"\n  {PAGE}")
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
    server = stack.daemon.inspect(running_server(stack))
    if server is None:
        raise StopError(f"{stack.name} has no server; type: {make('up', stack.name)}")
    _database(stack, target, "check")
    _artifacts(stack, target, server, check=True)
    if dry:
        progress("the target can be used; nothing was changed")
        return
    question = f"This stops the server of {stack.name} after a first copy of the artifacts. It stays stopped."
    if not confirmed(question):
        raise StopError("nothing was changed")
    _artifacts(stack, target, server)
    progress("stopping the server")
    deployed = servers(stack)
    complete = False
    try:
        for name in deployed:
            stack.daemon.stop(name)
        _artifacts(stack, target, server)
        _database(stack, target, "copy")
        complete = True
    finally:
        if not complete:
            for name in deployed:
                stack.daemon.start(name)
            progress("the server was started again; the target is incomplete")
    for name in deployed:
        # Otherwise Docker would start it again when the daemon restarts.
        stack.daemon.stop(name, for_good=True)
    output(
        f"{stack.name} is copied, and equal: database {target.values['PGHOST']}, bucket {target.values['S3_BUCKET']}\n"
        f"  its server is stopped; to start it again, type: {make('up', stack.name)}\n"
        f"  what the new server needs: {PAGE}"
    )


def _database(stack: Stack, target: Target, role: str) -> None:
    """Check or copy the database; raise `StopError` if that fails."""
    postgres = stack.daemon.inspect(names.docker_name(stack.name, "postgres"))
    if postgres is None:
        raise StopError(f"{stack.name} has no database; type: {make('up', stack.name)}")
    environment = {key: target.values[key] for key in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSSLMODE")}
    environment["SOURCE_HOST"] = names.docker_name(stack.name, "postgres")
    files = {"pgpass": target.pgpass, "database.sh": (ROOT / "assets" / "export" / "database.sh").read_text()}
    command = ["bash", f"{TARGET_SECRETS}/database.sh", role]
    if _run(stack, postgres["Image"], command, environment, files):
        raise StopError(f"the database was not {'copied' if role == 'copy' else 'checked'}; the reason is above")


def _artifacts(stack: Stack, target: Target, server: dict[str, Any], *, check: bool = False) -> None:
    """Copy the artifacts that the target lacks, or only check that it can be used; raise `StopError` if that fails."""
    theirs = dict(entry.partition("=")[::2] for entry in server["Config"]["Env"])
    environment = {key: value for key, value in theirs.items() if key.startswith("AWS_") and "CREDENTIALS" not in key}
    environment |= {
        "SOURCE": stack.settings.object_store.kind,
        "SOURCE_ENDPOINT": theirs["MLFLOW_S3_ENDPOINT_URL"],
        "BUCKET": theirs["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").partition("/")[0],
        "TARGET": "the target",
        "TARGET_ENDPOINT": target.values["S3_ENDPOINT_URL"],
        "TARGET_BUCKET": target.values["S3_BUCKET"],
        "AWS_DEFAULT_REGION": target.values["AWS_DEFAULT_REGION"],
        "AWS_SHARED_CREDENTIALS_FILE": "/tmp/credentials",  # noqa: S108 - inside the container
        "HOME": "/tmp",  # noqa: S108 - inside the container
        **({"CHECK": "1"} if check else {}),
    }
    files = {
        "aws-credentials": target.credentials,
        "copy_artifacts.py": (ROOT / "assets" / "copy" / "copy_artifacts.py").read_text(),
    }
    if _run(stack, server["Image"], ["bash", "-c", ARTIFACTS], environment, files):
        raise StopError(f"the artifacts were not {'checked' if check else 'copied'}; the reason is above")


def _run(stack: Stack, image: str, command: list[str], environment: Mapping[str, str], files: Mapping[str, str]) -> int:
    """Run a command with the files in a container that reaches the stack's services and the outside."""
    body = {
        "Image": image,
        "User": f"{UID}:{UID}",
        "Entrypoint": [],
        "Cmd": command,
        "Env": [f"{key}={value}" for key, value in environment.items()],
        "HostConfig": {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Init": True,
            "ExtraHosts": ["host.docker.internal:host-gateway"],
            "Binds": [f"{names.docker_name(stack.name, 'server-secrets')}:{SERVER_SECRETS}:ro"],
        },
    }
    networks = ["bridge", names.docker_name(stack.name, "backend")]
    name = names.docker_name(stack.name, "export")
    return stack.daemon.once(name, body, relay_output, networks=networks, archive=_packed(files))


def _packed(files: Mapping[str, str]) -> bytes:
    """Return the files as an archive for the container's root, readable by its user only."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{TARGET_SECRETS.lstrip('/')}/{name}")
            entry.size, entry.mode, entry.uid, entry.gid = len(content.encode()), 0o400, UID, UID
            archive.addfile(entry, io.BytesIO(content.encode()))
    return raw.getvalue()
