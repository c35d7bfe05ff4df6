"""Copies every artifact from one object store to another, and compares names, sizes and bytes.

It can be interrupted and run again: it copies no object twice. It deletes nothing from the source. No other program may
write to the stores meanwhile. Environment: BUCKET; SOURCE and TARGET, the names of the stores; SOURCE_ENDPOINT and
TARGET_ENDPOINT, their addresses. The credentials are the profiles `source` and `target` of AWS_SHARED_CREDENTIALS_FILE.
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
"""Maximum number of names that a message lists."""

Listing = Mapping[str, tuple[int, datetime]]
"""Size in bytes and time of the last change, by key. In whole seconds, because one of the stores has no fractions."""


def listing(client: Any, bucket: str) -> Listing:  # noqa: ANN401 - made by boto3 at run time
    """Return every object in `bucket`. Raises botocore's errors."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {
        found["Key"]: (found["Size"], found["LastModified"].replace(microsecond=0))
        for page in pages
        for found in page.get("Contents", [])
    }


def outdated(source: Listing, target: Listing) -> list[str]:
    """Return the keys whose target is missing, older (from an earlier copy), or as old with another size.

    A newer target is never returned: it was written after the copy, and a second run must not overwrite it.
    """

    def is_outdated(key: str) -> bool:
        if key not in target:
            return True
        (size, changed), (there, since) = source[key], target[key]
        return since < changed or (since == changed and there != size)

    return sorted(filter(is_outdated, source))


class Read:
    """A stream that counts and hashes an object's content while it is read."""

    def __init__(self, body: Any) -> None:  # noqa: ANN401 - made by boto3 at run time
        """Read from `body`."""
        self._body = body
        self.size = 0
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256()

    def read(self, amount: int | None = None) -> bytes:
        """Return the next bytes, at most `amount`."""
        found: bytes = self._body.read(amount)
        self.size += len(found)
        self.md5.update(found)
        self.sha256.update(found)
        return found


def copied(source: Any, target: Any, bucket: str, key: str, size: int) -> str | None:  # noqa: ANN401 - as above
    """Copy one object and compare it with its source; return what is wrong, or None."""
    found = source.get_object(Bucket=bucket, Key=key)
    kept = {name: found[name] for name in ("ContentType", "ContentEncoding") if found.get(name)}
    sent = Read(found["Body"])
    target.upload_fileobj(sent, bucket, key, ExtraArgs=kept)
    reason = None
    if sent.size != size:
        reason = f"the source lists {size} bytes, but returns {sent.size}"
    elif not arrived(target, bucket, key, sent):
        reason = "the target returns other bytes"
    if reason:
        # It is newer than its source: the next run would take it for an object that was written after the copy.
        target.delete_object(Bucket=bucket, Key=key)
    return reason


def arrived(target: Any, bucket: str, key: str, sent: Read) -> bool:  # noqa: ANN401 - as above
    """Return whether the target returns the bytes that were sent."""
    found = target.get_object(Bucket=bucket, Key=key)
    # The store has a checksum of an object that was uploaded in one part. Others are read again.
    if found.get("ETag", "").strip('"') == sent.md5.hexdigest():
        return True
    back = Read(found["Body"])
    while back.read(CHUNK_BYTES):
        pass
    return bool(back.sha256.digest() == sent.sha256.digest())


def main() -> int:
    """Copy all objects. Return the exit code: 0 if all were copied, 1 if any is missing or differs."""
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
