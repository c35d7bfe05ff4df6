"""Whether the disk with Docker's data is encrypted, as far as this machine can tell."""

import os
from pathlib import Path

from operations.common.stack import Stack

PAGE = "docs/operations/encryption.md"
SYSFS = Path("/sys/dev/block")
CRYPT = "CRYPT-"
"""Start of the UUID of a device of dm-crypt, such as CRYPT-LUKS2-... (cryptsetup, lib/libdevmapper.c)."""


def encryption_note(stack: Stack) -> str:
    """Return in one line whether the disk with Docker's data is encrypted, not encrypted, or unknown."""
    root = str(stack.daemon.api.info()["DockerRootDir"])
    found = is_encrypted(Path(root)) if stack.daemon.host.startswith("unix://") else None
    if found is None:
        return f"it is unknown whether the disk with Docker's data ({root}) is encrypted; {PAGE}"
    return f"the disk with Docker's data ({root}) is {'encrypted' if found else 'not encrypted'}; {PAGE}"


def is_encrypted(folder: Path, sysfs: Path = SYSFS) -> bool | None:
    """Return whether dm-crypt is below the file system of a folder; None if its device is unknown."""
    try:
        number = folder.stat().st_dev
    except OSError:
        return None
    device = sysfs / f"{os.major(number)}:{os.minor(number)}"
    # btrfs, ZFS and network file systems have no block device of their own.
    return _has_crypt(device) if device.exists() else None


def _has_crypt(device: Path) -> bool:
    """Return whether a device is one of dm-crypt, or is built upon one: LVM, RAID."""
    try:
        if (device / "dm" / "uuid").read_text().startswith(CRYPT):
            return True
    except OSError:
        pass
    # A partition has none of its own.
    slaves = device / "slaves"
    return any(_has_crypt(below) for below in slaves.iterdir()) if slaves.is_dir() else False
