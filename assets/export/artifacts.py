"""Copies every artifact to a bucket elsewhere, and compares the bytes of each.

It may run while the server writes, and again when the server is stopped: it copies what was written meanwhile. For
that, the object `STATE` in the target records which version of each object was copied; a comparison of two machines'
clocks would be wrong. usage: artifacts.py check|copy|finish. `finish` also removes the record.

Environment: SOURCE_BUCKET, TARGET_BUCKET; SOURCE_ENDPOINT and TARGET_ENDPOINT, their addresses (empty: AWS);
SOURCE_AUTHORITY, the file with the authority of the source's certificate, if it has one of its own. The
credentials are the profiles `source` and `target` of AWS_SHARED_CREDENTIALS_FILE.
"""

import json
import os
import sys
import time
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from copy_artifacts import SHOWN, Read, arrived

STATE = "mlflow-export-state"
SAVE_SECONDS = 30
"""How often the record is written: after an interruption, at most the objects of this time are copied again."""

Version = list[str | int]
"""Size in bytes, ETag and time of the last change of an object in the source."""


def client(role: str) -> Any:  # noqa: ANN401 - made by boto3 at run time
    """Return the S3 client for the source or the target."""
    # None stands for the public authorities.
    trusted = os.environ.get(f"{role.upper()}_AUTHORITY")
    endpoint = os.environ[f"{role.upper()}_ENDPOINT"] or None
    return boto3.Session(profile_name=role).client("s3", endpoint_url=endpoint, verify=trusted)


def versions(store: Any, bucket: str) -> dict[str, Version]:  # noqa: ANN401
    """Return the version of every object in `bucket`."""
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {found["Key"]: version(found["Size"], found) for page in pages for found in page.get("Contents", [])}


def version(size: int, found: dict[str, Any]) -> Version:
    """Return the version of a listed object, or of one that was requested."""
    return [size, found["ETag"].strip('"'), str(found["LastModified"].replace(microsecond=0))]


def check(target: Any, bucket: str) -> int:  # noqa: ANN401
    """Write, read and delete an object in the target. Return the exit code: 0 if that works."""
    key, body = f"{STATE}-check", b"can be deleted"
    try:
        # SeaweedFS creates a bucket at the first write, also one with a typing error in its name.
        target.head_bucket(Bucket=bucket)
        target.put_object(Bucket=bucket, Key=key, Body=body)
        same = target.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        target.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        print(f"error: cannot use the bucket {bucket}: {error}")
        return 1
    print(f"the bucket {bucket} can be written and read" if same else f"error: {bucket} returns other bytes")
    return 0 if same else 1


class Export:
    """A copy from one bucket to another, with the record of what was copied."""

    def __init__(self, source: Any, target: Any, buckets: tuple[str, str]) -> None:  # noqa: ANN401
        """Read the record of an earlier run, if there is one."""
        self.source, self.target = source, target
        self.bucket, self.theirs = buckets
        self.saved = time.monotonic()
        try:
            self.copied: dict[str, Version] = json.load(target.get_object(Bucket=self.theirs, Key=STATE)["Body"])
        except ClientError:
            self.copied = {}

    def missing(self) -> dict[str, Version]:
        """Return the objects of which the target does not have the current version."""
        there = versions(self.target, self.theirs)
        return {
            key: wanted
            for key, wanted in versions(self.source, self.bucket).items()
            if self.copied.get(key) != wanted or key not in there or there[key][0] != wanted[0]
        }

    def copy(self, key: str) -> str | None:
        """Copy one object and compare it with its source; return what is wrong, or None."""
        found = self.source.get_object(Bucket=self.bucket, Key=key)
        kept = {name: found[name] for name in ("ContentType", "ContentEncoding") if found.get(name)}
        sent = Read(found["Body"])
        self.target.upload_fileobj(sent, self.theirs, key, ExtraArgs=kept)
        if sent.size != found["ContentLength"]:
            return f"the source says {found['ContentLength']} bytes, but returns {sent.size}"
        if not arrived(self.target, self.theirs, key, sent):
            return "the target returns other bytes"
        # The version that was read, which may be newer than the listed one.
        self.copied[key] = version(sent.size, found)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()
        return None

    def save(self) -> None:
        """Write the record."""
        self.target.put_object(Bucket=self.theirs, Key=STATE, Body=json.dumps(self.copied).encode())
        self.saved = time.monotonic()

    def run(self, *, finish: bool) -> int:
        """Copy what is missing. Return the exit code: with `finish`, 0 only if nothing is missing at the end."""
        to_do = self.missing()
        total = sum(int(wanted[0]) for wanted in to_do.values())
        print(f"{len(to_do)} artifacts to copy, {total / 1e6:.0f} MB", flush=True)
        wrong: dict[str, str] = {}
        for key in to_do:
            try:
                reason = self.copy(key)
            except ClientError as error:
                reason = str(error)
            if reason:
                wrong[key] = reason
        self.save()
        if not finish:
            # What was deleted or changed meanwhile is compared at the end.
            return 0
        left = dict.fromkeys(self.missing(), "the target does not have it") | wrong
        if left:
            shown = [f"{key}: {reason}" for key, reason in left.items()][:SHOWN]
            print(f"{len(left)} artifacts are not in the target, the first of them:", *shown, sep="\n  ")
            print("see docs/operations/backup.md#artifacts-that-cannot-be-read")
            return 1
        self.target.delete_object(Bucket=self.theirs, Key=STATE)
        print(f"all {len(versions(self.source, self.bucket))} artifacts are in the bucket {self.theirs}")
        return 0


def main(command: str) -> int:
    """Run one command; return its exit code."""
    bucket = os.environ["TARGET_BUCKET"]
    if command == "check":
        return check(client("target"), bucket)
    return Export(client("source"), client("target"), (os.environ["SOURCE_BUCKET"], bucket)).run(
        finish=command == "finish"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
