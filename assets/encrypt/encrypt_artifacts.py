"""Encrypts the artifacts that were written before the object store encrypted new ones, and compares their bytes.

The store copies each object onto itself, which encrypts it. It can be interrupted and run again: it copies no object
twice. No other program may write to the bucket meanwhile. usage: encrypt_artifacts.py count|encrypt

Environment: BUCKET, ENDPOINT, AWS_SHARED_CREDENTIALS_FILE, and AWS_CA_BUNDLE if the store speaks TLS.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import boto3  # type: ignore[import-untyped]
from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]

ALGORITHM = "AES256"
CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 1 << 30
KEPT = ("ContentType", "ContentEncoding", "ContentDisposition", "ContentLanguage", "CacheControl", "Metadata")
"""What describes an object, and stays."""
LARGE_BYTES = 1 << 30
"""From this size on, an object is copied in parts. S3 copies at most 5 GiB at once."""


def objects(store: Any, bucket: str) -> Iterator[tuple[str, int]]:  # noqa: ANN401 - made by boto3 at run time
    """Yield the key and the size in bytes of every object."""
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            yield found["Key"], found["Size"]


def is_encrypted(store: Any, bucket: str, key: str) -> bool:  # noqa: ANN401
    """Return whether the store has encrypted an object."""
    return bool(store.head_object(Bucket=bucket, Key=key).get("ServerSideEncryption") == ALGORITHM)


def digest(store: Any, bucket: str, key: str) -> bytes:  # noqa: ANN401
    """Return the SHA-256 of an object's content."""
    found = hashlib.sha256()
    for chunk in store.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(CHUNK_BYTES):
        found.update(chunk)
    return found.digest()


def encrypt(store: Any, bucket: str, key: str) -> str | None:  # noqa: ANN401
    """Encrypt one object, and compare it with what it was; return what is wrong, or None."""
    before = digest(store, bucket, key)
    transfer = TransferConfig(multipart_threshold=LARGE_BYTES, multipart_chunksize=LARGE_BYTES)
    described = store.head_object(Bucket=bucket, Key=key)
    # SeaweedFS copies an object onto itself only if its metadata is replaced.
    arguments = {name: described[name] for name in KEPT if described.get(name)}
    arguments |= {"ServerSideEncryption": ALGORITHM, "MetadataDirective": "REPLACE"}
    store.copy({"Bucket": bucket, "Key": key}, bucket, key, ExtraArgs=arguments, Config=transfer)
    if digest(store, bucket, key) != before:
        return "has other bytes than before"
    return None if is_encrypted(store, bucket, key) else "is not encrypted"


def main(command: str) -> int:
    """Count or encrypt what is not encrypted; return 0, or 1 if an object is wrong afterwards."""
    bucket = os.environ["BUCKET"]
    store = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"])
    listed = dict(objects(store, bucket))
    left = [key for key in listed if not is_encrypted(store, bucket, key)]
    total = sum(listed[key] for key in left)
    print(f"{len(listed)} artifacts, {len(left)} of them not encrypted, {total / 1e6:.0f} MB", flush=True)
    if command == "count":
        return 0
    done = told = 0
    for key in left:
        if problem := encrypt(store, bucket, key):
            print(f"{key}: {problem}; stopped", file=sys.stderr)
            return 1
        done += listed[key]
        if done - told >= PROGRESS_BYTES:
            told = done
            print(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
    print(f"every artifact of {bucket} is encrypted; {len(left)} were encrypted now, and their bytes are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
