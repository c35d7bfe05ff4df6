"""Free space on the disks of the staging folder and of the backup target."""

import os
import shutil
from pathlib import Path

import database
from layout import ARTIFACTS, CURRENT, STAGING
from manifest import files
from shell import Failure, amount

RESERVE_BYTES = 1 << 30
"""Space that stays free on a disk."""


def require_space(new_bytes: int) -> None:
    """Raise `Failure` if the staging folder, or a target on this host, has too little space for the backup."""
    coming = new_bytes + database.size()
    target = Path(os.environ["RESTIC_REPOSITORY"])
    if target.is_absolute() and not on_one_disk():
        require_free(target, coming, "the new data of a backup")
        require_free(STAGING, coming, "the mirror of the artifacts and the dump")
    else:
        twice = 2 if target.is_absolute() else 1
        require_free(STAGING, twice * coming, "the mirror of the artifacts, the dump, and the new data of a backup")


def mirrored_bytes() -> int:
    """Return the size in bytes of the artifacts in the staging folder."""
    return sum(path.stat().st_size for path in files(CURRENT / ARTIFACTS))


def on_one_disk() -> bool:
    """Return whether the repository is on the disk of the staging folder, which normally also holds the data."""
    target = Path(os.environ["RESTIC_REPOSITORY"])
    return target.is_absolute() and target.stat().st_dev == STAGING.stat().st_dev


def require_free(folder: Path, wanted: int, what_for: str) -> None:
    """Raise `Failure` if less than `wanted` bytes plus a reserve are free on a folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE_BYTES:
        raise Failure(
            f"{folder}: {amount(free)} are free, {amount(wanted + RESERVE_BYTES)} are needed for {what_for}\n"
            "  nothing was changed; to free space on the Docker host: docs/operations/capacity.md#disk-full"
        )
