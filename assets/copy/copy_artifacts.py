"""Copies every artifact from one object store to another, and proves that none is missing.

May be cut off and run again: what is there already is not copied twice. Nobody writes to either store meanwhile, and
nothing is deleted. Environment: BUCKET, and of SOURCE and TARGET each the name and, with _ENDPOINT, the address; the
credentials are profiles `source` and `target` of AWS_SHARED_CREDENTIALS_FILE.
"""

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import boto3  # type: ignore[import-untyped]

PROGRESS_BYTES = 1 << 30

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
    for key in to_do:
        found = source.get_object(Bucket=bucket, Key=key)
        kept = {name: found[name] for name in ("ContentType", "ContentEncoding") if found.get(name)}
        target.upload_fileobj(found["Body"], bucket, key, ExtraArgs=kept)
        done += wanted[key][0]
        if done - told >= PROGRESS_BYTES:
            told = done
            print(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
    if missing := outdated(listing(source, bucket), listing(target, bucket)):
        print(f"{len(missing)} artifacts differ after the copy, the first of them:", *missing[:5], sep="\n  ")
        return 1
    print(f"every artifact of {bucket} has been copied from {names[0]} to {names[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
