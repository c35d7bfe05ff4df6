"""Copies every artifact from one object store to another, and proves by comparison that it did: names, sizes, bytes.

May be cut off and run again: what is there already is not copied twice. Nobody writes to either store meanwhile, and
nothing is deleted. Environment: BUCKET, and of SOURCE and TARGET each the name and, with _ENDPOINT, the address; the
credentials are profiles `source` and `target` of AWS_SHARED_CREDENTIALS_FILE.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

PROGRESS_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
SHOWN = 10
"""Of a list of names."""

Listing = Mapping[str, tuple[int, datetime]]
"""Key to size in bytes and time of the last change, in whole seconds: one of the stores knows no others."""


def listing(client: Any, bucket: str) -> Listing:  # noqa: ANN401 - made by boto3 at run time
    """Return every object of `bucket`; raise botocore's errors."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {
        found["Key"]: (found["Size"], found["LastModified"].replace(microsecond=0))
        for page in pages
        for found in page.get("Contents", [])
    }


def outdated(source: Listing, target: Listing) -> list[str]:
    """Return the keys whose target is missing or older, an earlier move may have left it, or as old and another.

    Never of one that is newer: it was written since the move, and a second run must not bring back what was there.
    """

    def is_outdated(key: str) -> bool:
        if key not in target:
            return True
        (size, changed), (there, since) = source[key], target[key]
        return since < changed or (since == changed and there != size)

    return sorted(filter(is_outdated, source))


class Read:
    """An object's content on its way, counted and hashed."""

    def __init__(self, body: Any) -> None:  # noqa: ANN401 - made by boto3 at run time
        """Read from `body`."""
        self._body = body
        self.size = 0
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256()

    def read(self, amount: int | None = None) -> bytes:
        """Return the next bytes; at most `amount`."""
        found: bytes = self._body.read(amount)
        self.size += len(found)
        self.md5.update(found)
        self.sha256.update(found)
        return found


def copied(source: Any, target: Any, bucket: str, key: str, size: int) -> str | None:  # noqa: ANN401 - as above
    """Copy one object, and compare what has arrived; return what is wrong with it, or None."""
    found = source.get_object(Bucket=bucket, Key=key)
    kept = {name: found[name] for name in ("ContentType", "ContentEncoding") if found.get(name)}
    sent = Read(found["Body"])
    target.upload_fileobj(sent, bucket, key, ExtraArgs=kept)
    reason = None
    if sent.size != size:
        reason = f"the source lists {size} bytes, and gives {sent.size}"
    elif not _arrived(target, bucket, key, sent):
        reason = "the target gives other bytes"
    if reason:
        # Newer than its source, it would be taken for written since by the next run.
        target.delete_object(Bucket=bucket, Key=key)
    return reason


def _arrived(target: Any, bucket: str, key: str, sent: Read) -> bool:  # noqa: ANN401 - as above
    """Whether the target gives what was sent."""
    found = target.get_object(Bucket=bucket, Key=key)
    # Of what was uploaded in one piece the store has a checksum of its own. The rest is read again.
    if found.get("ETag", "").strip('"') == sent.md5.hexdigest():
        return True
    back = Read(found["Body"])
    while back.read(CHUNK_BYTES):
        pass
    return bool(back.sha256.digest() == sent.sha256.digest())


def main() -> int:
    """Return the exit code: 0 if everything is there, 1 if something is missing."""
    names = os.environ["SOURCE"], os.environ["TARGET"]
    bucket = os.environ["BUCKET"]
    source, target = (
        boto3.Session(profile_name=role).client("s3", endpoint_url=os.environ[f"{role.upper()}_ENDPOINT"])
        for role in ("source", "target")
    )
    wanted = listing(source, bucket)
    to_do = outdated(wanted, listing(target, bucket))
    total = sum(wanted[key][0] for key in to_do)
    print(f"{len(wanted)} artifacts in {names[0]}, {len(to_do)} to copy, {total / 1e6:.0f} MB", flush=True)
    done = told = 0
    wrong: dict[str, str] = {}
    for key in to_do:
        try:
            reason = copied(source, target, bucket, key, wanted[key][0])
        except ClientError as error:
            reason = str(error)
        if reason:
            wrong[key] = reason
        done += wanted[key][0]
        if done - told >= PROGRESS_BYTES:
            told = done
            print(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
    missing = dict.fromkeys(outdated(listing(source, bucket), listing(target, bucket)), "the target does not list it")
    if differing := missing | wrong:
        shown = [f"{key}: {reason}" for key, reason in differing.items()][:SHOWN]
        print(f"{len(differing)} artifacts differ after the copy, the first of them:", *shown, sep="\n  ")
        print("see docs/operations/backup.md#artifacts-that-cannot-be-read")
        return 1
    print(f"every artifact of {bucket} has been copied from {names[0]} to {names[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
