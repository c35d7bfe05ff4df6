"""`make upgrade-postgres`: move the database to another major version of Postgres, and back to the old one."""

import os
import re
import shutil
import time

from docker.errors import APIError

from operations.common.checkout import ROOT
from operations.common.console import (
    StopError,
    confirmed,
    flag,
    format_bytes,
    make,
    output,
    progress,
    require_confirmation,
)
from operations.common.stack import Stack
from operations.data.backup import in_container
from operations.data.data_keys import secret_of
from operations.deployment import deploy
from operations.deployment.engine_for import engine_of
from operations.deployment.pin import digest
from operations.engine.engine import Engine
from operations.engine.recovery import recover
from operations.host import containers
from operations.host.once import backend, run_once
from operations.host.servers import Servers, servers
from operations.observe.status import require_containers
from preconditions import host as preconditions
from settings import names
from settings.base import NO_DIGEST
from settings.images import DEFAULTS, Image
from settings.postgres import UID
from settings.stack import major

FILES = "/run/upgrade"
KEY = "mlflow:images.postgres"
VOLUME = "docker:index/volume:Volume"
PAGE = "docs/operations/upgrade.md#upgrade-postgres"
DATABASE_BYTES = "SELECT pg_database_size('mlflow')"


def upgrade_postgres(stack: Stack) -> None:
    """Move the database to the Postgres `TO=` (a major version, or an image). `DRY_RUN=1` only checks.

    The old volume stays as it is. If `TO=` is the version of an older volume, the stack goes back to that volume, which
    requires `CONFIRM=`. It can be typed again after an interruption.
    """
    dry = flag("DRY_RUN")
    require_containers(stack)
    containers.require_no_operation(stack.daemon, stack.name)
    engine = engine_of(stack)
    ref = _wanted(stack)
    wanted = major(ref)
    assert wanted is not None, "_wanted() refuses it"  # noqa: S101
    if wanted == stack.settings.postgres_major:
        _finish(stack, engine, ref, wanted, dry=dry)
        return
    volumes = {known for volume in stack.daemon.volumes() if (known := names.postgres_major(stack.name, volume))}
    if wanted < stack.settings.postgres_major:
        if wanted not in volumes:
            gone = names.postgres_volume(stack.name, wanted)
            raise StopError(
                f"TO={os.environ['TO']}: is older than Postgres {stack.settings.postgres_major} of {stack.name}, and "
                f"there is no volume {gone} to go back to; nothing was changed"
            )
        _go_back(stack, engine, ref, wanted, dry=dry)
        return
    _go_forward(stack, engine, ref, wanted, volumes, dry=dry)


def _go_forward(stack: Stack, engine: Engine, ref: str, wanted: int, volumes: set[int], *, dry: bool) -> None:
    """Move the database to a newer version, for which there may be a volume already."""
    deployed = servers(stack)
    if not deployed.deployed:
        raise StopError(f"{stack.name} has no server; type: {make('up', stack.name)}")
    image = _image(stack, ref)
    _require_valid(stack, image)
    size = _require_space(stack)
    overwrites = wanted in volumes and _script(stack, image.name, wanted, "check") != 0
    if dry:
        progress(
            f"the database ({format_bytes(size)}) would be copied into {names.postgres_volume(stack.name, wanted)} and "
            "compared, while the server is stopped; nothing was changed"
        )
        return
    question = f"This stops the server of {stack.name} while its database moves to Postgres {wanted}."
    if overwrites:
        volume = names.postgres_volume(stack.name, wanted)
        require_confirmation(
            stack.name,
            f"{volume} was in use before: what was written to it then is only there, and this deletes it.",
            verb=f"upgrade-postgres TO={os.environ['TO']}",
        )
    elif not confirmed(question):
        raise StopError("nothing was changed")
    if stack.settings.backup.enabled:
        progress("taking a backup first")
        in_container(stack, "backup")
    began = time.monotonic()
    _move(stack, deployed, image.name, wanted)
    _switch(stack, engine, image)
    old = [names.postgres_volume(stack.name, known) for known in sorted(volumes - {wanted})]
    output(
        f"the database of {stack.name} is in Postgres {wanted}; the server was stopped for "
        f"{time.monotonic() - began:.0f} s\n"
        f"  the old volume is unchanged: {', '.join(old)}\n"
        f"  when everything works, type: docker volume rm {' '.join(old)}; {PAGE}"
    )


def _wanted(stack: Stack) -> str:
    """Return the image of TO=; raise `StopError` if it is none."""
    given = os.environ.get("TO") or ""
    current = stack.settings.images.postgres.ref
    packages = current.startswith(f"{names.LOCAL_REGISTRY}/")
    example = f"{make('upgrade-postgres', stack.name)} TO=" + (
        DEFAULTS["postgres"]["ref"] if packages else str(stack.settings.postgres_major + 1)
    )
    if not given:
        raise StopError(f"TO= is not set: the new major version, or an image such as {current}\n  type: {example}")
    if re.fullmatch(r"\d+(\.\d+)*", given):
        if given == str(stack.settings.postgres_major):
            return current
        if packages:
            raise StopError(
                f"TO={given}: Debian's packages have Postgres {stack.settings.postgres_major} only\n"
                f"  name an image, such as: {example}; {PAGE}"
            )
        return f"{current.rpartition(':')[0]}:{given}"
    if major(given) is None:
        raise StopError(f"TO={given}: has no tag with a version\n  type: {example}")
    return given


def _image(stack: Stack, ref: str) -> Image:
    """Return the image, with its digest if the current one has a digest; raise `StopError` if it is not available."""
    found = Image(ref=ref)
    if stack.settings.images.postgres.digest != NO_DIGEST:
        try:
            found = Image(ref=ref, digest=digest(stack, ref))
        except APIError as error:
            raise StopError(
                f"TO={os.environ['TO']}: the registry has no digest of {ref}: {error.explanation}\n"
                f"  nothing was changed; {PAGE}"
            ) from None
    if not stack.daemon.has_image(found.name):
        progress(f"pulling {found.name}")
        if problem := stack.daemon.pull(found.name):
            raise StopError(f"TO={os.environ['TO']}: {found.name}: {problem}\n  nothing was changed; {PAGE}")
    return found


def _require_space(stack: Stack) -> int:
    """Return the size of the database in bytes; raise `StopError` if the disk has no room for another copy."""
    container = names.docker_name(stack.name, "postgres")
    code, printed = stack.daemon.run(container, ["psql", "-U", "postgres", "-d", "mlflow", "-Atc", DATABASE_BYTES])
    if code:
        raise StopError(f"{container} does not answer: {printed}\n  type: {make('status', stack.name)}")
    size = int(printed)
    code, printed = stack.daemon.run(container, ["df", "-B1", "--output=avail", "/var/lib/postgresql"])
    free = int(printed.split()[-1]) if code == 0 else shutil.disk_usage("/").free
    if free < 2 * size:
        raise StopError(
            f"{format_bytes(free)} are free on the Docker host, {format_bytes(2 * size)} are needed\n"
            "  nothing was changed; to free space: docs/operations/capacity.md#disk-full"
        )
    return size


def _require_valid(stack: Stack, image: Image) -> None:
    """Raise `StopError` if the stack file would not be valid with this image, while nothing has changed."""
    stack.settings_with(images={"postgres": {"ref": image.ref, "digest": image.digest}})
    backup = stack.settings.images.backup
    if stack.settings.backup.enabled and backup is not None:
        raise StopError(
            f"mlflow:images.backup: {backup.ref} has the programs of Postgres {stack.settings.postgres_major}, which "
            "cannot read a newer one\n"
            f"  name a backup image that was built on {image.ref}, or set mlflow:backup.enabled: false meanwhile; "
            f"nothing was changed; {PAGE}"
        )


def _script(stack: Stack, image: str, wanted: int, command: str) -> int:
    """Run assets/upgrade/move.sh in the new image, with the volumes of the old container; return its exit code."""
    deployed = servers(stack)
    old = stack.daemon.api.inspect_container(names.docker_name(stack.name, "postgres"))
    binds = [bind for bind in old["HostConfig"]["Binds"] if not bind.split(":")[1].startswith("/var/lib/postgresql")]
    trusted = deployed.scheme == "https"
    files = {"move.sh": (ROOT / "assets" / "upgrade" / "move.sh").read_text(), "pgpass": secret_of(deployed, "pgpass")}
    if trusted:
        files[names.AUTHORITY_FILE] = secret_of(deployed, names.AUTHORITY_FILE)
    return run_once(
        stack,
        names.UPGRADE,
        image=image,
        command=["bash", f"{FILES}/move.sh", command],
        environment={
            "STACK": stack.name,
            "SOURCE_HOST": names.docker_name(stack.name, "postgres"),
            "SOURCE_SSLMODE": "verify-full" if trusted else "disable",
        },
        files={f"{FILES}/{name}": content for name, content in files.items()},
        networks=backend(stack),
        user=UID,
        host={
            "Binds": [*binds, f"{names.postgres_volume(stack.name, wanted)}:/var/lib/postgresql"],
            "Tmpfs": old["HostConfig"]["Tmpfs"],
            "Memory": old["HostConfig"]["Memory"],
            "MemorySwap": old["HostConfig"]["Memory"],
            "ShmSize": old["HostConfig"]["ShmSize"],
        },
    )


def _move(stack: Stack, deployed: Servers, image: str, wanted: int) -> None:
    """Stop the server, and fill and compare the new volume; raise `StopError`, with the server started, if it fails."""
    progress("stopping the server")
    complete = False
    try:
        deployed.stop(for_good=True)
        progress(f"copying the database into {names.postgres_volume(stack.name, wanted)}")
        if _script(stack, image, wanted, "move"):
            raise StopError(
                f"the database was not moved; the reason is above, and {stack.name} is as it was\n"
                f"  fix the cause, then type again: {make('upgrade-postgres', stack.name)} TO={os.environ['TO']}"
            )
        complete = True
    finally:
        if not complete and not preconditions.is_running(stack.daemon, stack.name, names.UPGRADE):
            deployed.resume()
            deployed.start()
            progress("the server was started again")


def _switch(stack: Stack, engine: Engine, image: Image) -> None:
    """Write the image into the stack file, and deploy."""
    engine.select()
    # Both at once: the digest of the old image with the new name would start the old Postgres on the new volume.
    stack.set("images", postgres={"ref": image.ref, "digest": image.digest})
    _deploy(stack, engine)


def _deploy(stack: Stack, engine: Engine) -> None:
    """Deploy with the volume of the stack file's version. The state protects the one of the other version."""
    # A killed update leaves its lock, with which the state cannot be changed.
    recover(engine)
    for resource in engine.state.resources:
        if resource["type"] == VOLUME and resource["urn"].endswith("::postgres-data") and resource.get("protect"):
            engine.call("state", "unprotect", str(resource["urn"]), "--yes")
    engine.forget_state()
    deploy.up(stack, approved=True)


def _finish(stack: Stack, engine: Engine, ref: str, wanted: int, *, dry: bool) -> None:
    """Complete an upgrade that was interrupted after the stack file was written. Does nothing if it is complete."""
    found = stack.daemon.inspect(names.docker_name(stack.name, "postgres"))
    volume = names.postgres_volume(stack.name, wanted)
    mounted = found is not None and any(mount.get("Name") == volume for mount in found["Mounts"])
    if ref != stack.settings.images.postgres.ref:
        raise StopError(
            f"TO={os.environ['TO']}: has the data format of {stack.settings.images.postgres.ref}, which {stack.name} "
            f"uses\n  for another minor version, set {KEY}.ref, then type: {make('up', stack.name)}; {PAGE}"
        )
    if mounted and servers(stack).running:
        output(f"{stack.name} has its database in Postgres {wanted} ({ref}) already")
        return
    if dry:
        progress("an interrupted upgrade would be completed; nothing was changed")
        return
    progress("completing an interrupted upgrade")
    engine.select()
    _deploy(stack, engine)
    output(f"the database of {stack.name} is in Postgres {wanted}")


def _go_back(stack: Stack, engine: Engine, ref: str, wanted: int, *, dry: bool) -> None:
    """Use the volume of an older version again, as it was when the database moved away from it."""
    volume = names.postgres_volume(stack.name, wanted)
    question = (
        f"This takes {volume} into use again, as it was before the upgrade: what {stack.name} has written since is "
        f"only in {names.postgres_volume(stack.name, stack.settings.postgres_major)}."
    )
    if dry:
        progress(f"{question}\nnothing was changed")
        return
    require_confirmation(stack.name, question, verb=f"upgrade-postgres TO={os.environ['TO']}")
    image = _image(stack, ref)
    stack.settings_with(images={"postgres": {"ref": image.ref, "digest": image.digest}})
    deployed, complete = servers(stack), False
    try:
        deployed.stop(for_good=True)
        _switch(stack, engine, image)
        complete = True
    finally:
        if not complete and stack.settings.images.postgres.ref != image.ref:
            deployed.resume()
            deployed.start()
    output(f"the database of {stack.name} is in Postgres {wanted} again, as it was before the upgrade")
