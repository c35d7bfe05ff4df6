"""`make encrypt`: encrypt the artifacts that were there before `mlflow:objectStore.encryption` was set."""

import time
from collections.abc import Callable

from operations.common.checkout import ROOT
from operations.common.console import StopError, confirmed, flag, make, output, progress, relay_output
from operations.common.stack import Stack
from operations.data.data_keys import secret_of
from operations.host import containers
from operations.host.once import backend, run_once
from operations.host.servers import Servers, servers
from operations.observe.status import require_containers
from settings import names

FILES = "/run/encrypt"
"""Folder of the script and the credentials in the container."""
PAGE = "docs/operations/encryption.md"
VACUUM = "http://127.0.0.1:9333/vol/vacuum?garbageThreshold=0.000001"
"""The request that makes SeaweedFS' master rewrite every volume with deleted data."""
VACUUM_SECONDS = 24 * 3600
VACUUMS, DELETION_SECONDS = 3, 5
NONE_LEFT = ", 0 of them not encrypted"
"""In what assets/encrypt/encrypt_artifacts.py counts."""


def encrypt(stack: Stack) -> None:
    """Stop the server, encrypt, compare, start the server. `DRY_RUN=1` only counts. It can be typed again."""
    dry = flag("DRY_RUN")
    require_containers(stack)
    containers.require_no_operation(stack.daemon, stack.name)
    deployed = servers(stack)
    if not stack.settings.object_store.encryption:
        raise StopError(
            f"mlflow:objectStore.encryption is false, so there is no key; nothing was changed\n"
            f"  set it to true in {stack.path.name}, then type: {make('up', stack.name)}; {PAGE}"
        )
    if not deployed.deployed:
        raise StopError(f"{stack.name} has no server; type: {make('up', stack.name)}")
    said: list[str] = []
    _run(stack, deployed, "count", said.append)
    count = "".join(said).strip()
    progress(count)
    if dry:
        progress("nothing was changed")
        return
    if NONE_LEFT in count:
        # An earlier call may have been killed before its end.
        _erase_old_copies(stack)
        if not deployed.running:
            deployed.resume()
            deployed.start()
        progress("every artifact was encrypted already")
        return
    if not confirmed(f"This stops the server of {stack.name} until its artifacts are encrypted."):
        raise StopError("nothing was changed")
    progress("stopping the server")
    try:
        deployed.stop(for_good=True)
        _run(stack, deployed, "encrypt")
    finally:
        deployed.resume()
        progress("starting the server again")
    deployed.start()
    # While the server runs, because that can take hours.
    _erase_old_copies(stack)
    output(f"every artifact of {stack.name} is encrypted on the disk of the object store")


def _erase_old_copies(stack: Stack) -> None:
    """Have SeaweedFS erase what it has deleted: until then, its disk has the artifacts as they were before.

    MinIO erases the old files by itself, within minutes.
    """
    if stack.settings.object_store.kind != "seaweedfs":
        return
    container = names.docker_name(stack.name, "seaweedfs")
    for _ in range(VACUUMS):
        # It deletes with a delay, and erases only what it has deleted.
        time.sleep(DELETION_SECONDS)
        said: list[str] = []
        # It answers at the end, which takes hours for many artifacts.
        if stack.daemon.show(container, ["curl", "-fsS", "--max-time", str(VACUUM_SECONDS), VACUUM], said.append):
            raise StopError(
                f"the artifacts are encrypted, but {container} has not erased their old copies: {''.join(said)}\n"
                f"  type: docker exec {container} curl '{VACUUM}'"
            )


def _run(stack: Stack, deployed: Servers, command: str, tell: Callable[[str], None] = relay_output) -> None:
    """Run the script, `encrypt` under the exclusive lock; raise `StopError` if it fails."""
    theirs = deployed.environment
    environment = {
        "ENDPOINT": theirs["MLFLOW_S3_ENDPOINT_URL"],
        "BUCKET": stack.settings.object_store.bucket,
        "MLFLOW_BACKEND_STORE_URI": theirs["MLFLOW_BACKEND_STORE_URI"],
        "AWS_DEFAULT_REGION": theirs["AWS_DEFAULT_REGION"],
        "AWS_SHARED_CREDENTIALS_FILE": f"{FILES}/credentials",
        "PGPASSFILE": f"{FILES}/pgpass",
        "HOME": "/tmp",  # noqa: S108 - inside the container
    }
    secrets = {"credentials": "aws-credentials", "pgpass": "pgpass"}
    if deployed.scheme == "https":
        trusted = f"{FILES}/{names.AUTHORITY_FILE}"
        secrets[names.AUTHORITY_FILE] = names.AUTHORITY_FILE
        environment |= {"AWS_CA_BUNDLE": trusted, "PGSSLMODE": "verify-full", "PGSSLROOTCERT": trusted}
    files = {f"{FILES}/{name}": secret_of(deployed, secret) for name, secret in secrets.items()}
    script = (ROOT / "assets" / "encrypt" / "encrypt_artifacts.py").read_text()
    locked = ["python", "/opt/mlflow-stack/locked.py", names.ENCRYPT] if command == "encrypt" else []
    if run_once(
        stack,
        names.ENCRYPT,
        image=deployed.images[0],
        command=[*locked, "python", "-W", "ignore", f"{FILES}/encrypt_artifacts.py", command],
        environment=environment,
        files={**files, f"{FILES}/encrypt_artifacts.py": script},
        networks=backend(stack),
        tell=tell,
    ):
        raise StopError(
            f"the artifacts of {stack.name} are not all encrypted; the reason is above, and none was changed in part\n"
            f"  fix the cause, then type again: {make('encrypt', stack.name)}"
        )
