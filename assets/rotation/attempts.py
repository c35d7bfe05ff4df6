"""Tries values of secrets, and prints as JSON whether the service accepts each. Runs in the MLflow image.

Environment: FILES, the folder with `attempts.json`, and with `authority.pem` if the services speak TLS. An attempt has
an `id`, a `kind`, a `value`, and what that kind needs; see the functions. A service that does not answer is an error,
not a refusal.
"""

import base64
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FILES = Path(os.environ["FILES"])
AUTHORITY = FILES / "authority.pem"
REFUSED_BY_S3 = ("InvalidAccessKeyId", "SignatureDoesNotMatch")
"""Error codes of a wrong key. `AccessDenied` is the answer to a right key that lacks the permission."""
CACHE_SECONDS = 90
"""How long MLflow's workers may accept an earlier password: they cache it for 60 s."""


def postgres(attempt: dict[str, Any]) -> bool:
    """Log in with `user` and `password` to the database on `host`."""
    import psycopg2  # noqa: PLC0415 - only what an attempt needs

    trusted: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(AUTHORITY)} if AUTHORITY.exists() else {}
    try:
        psycopg2.connect(
            host=attempt["host"], user=attempt["user"], password=attempt["value"], dbname="mlflow", **trusted
        ).close()
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            return False
        raise
    return True


def s3(attempt: dict[str, Any]) -> bool:
    """List the `bucket` at `endpoint` as `user`."""
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # noqa: PLC0415

    client = boto3.client(
        "s3",
        endpoint_url=attempt["endpoint"],
        aws_access_key_id=attempt["user"],
        aws_secret_access_key=attempt["value"],
        region_name="us-east-1",
        verify=str(AUTHORITY) if AUTHORITY.exists() else None,
    )
    try:
        client.list_objects_v2(Bucket=attempt["bucket"], MaxKeys=1)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in REFUSED_BY_S3:
            return False
        if code != "AccessDenied":
            raise
    return True


def http(attempt: dict[str, Any]) -> bool:
    """Request `url` as `user`. With `cached`, repeat it until it is refused, but not longer than the cache lasts."""
    credentials = base64.b64encode(f"{attempt['user']}:{attempt['value']}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    request = urllib.request.Request(attempt["url"], headers=headers)  # noqa: S310 - of this stack
    context = ssl.create_default_context(cafile=str(AUTHORITY)) if AUTHORITY.exists() else None
    deadline = time.monotonic() + (CACHE_SECONDS if attempt.get("cached") else 0)
    while True:
        try:
            urllib.request.urlopen(request, timeout=30, context=context).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return False
            raise
        if time.monotonic() >= deadline:
            return True
        time.sleep(1)


def tls(attempt: dict[str, Any]) -> bool:
    """Connect to `host` and `port`, trusting only the authority in `value`."""
    context = ssl.create_default_context(cadata=attempt["value"])
    try:
        with socket.create_connection((attempt["host"], attempt["port"]), timeout=30) as plain:
            context.wrap_socket(plain, server_hostname=attempt["host"]).close()
    except ssl.SSLCertVerificationError:
        return False
    return True


KINDS = {"postgres": postgres, "s3": s3, "http": http, "tls": tls}


def main() -> int:
    """Try everything. Return 0 if each attempt had an answer, accepted or refused; else 1."""
    found: dict[str, str] = {}
    for attempt in json.loads((FILES / "attempts.json").read_text()):
        try:
            found[attempt["id"]] = "accepted" if KINDS[attempt["kind"]](attempt) else "refused"
        except Exception as error:  # noqa: BLE001 - each attempt is reported
            found[attempt["id"]] = f"no answer: {type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(found), flush=True)
    return int(any(answer.startswith("no answer") for answer in found.values()))


if __name__ == "__main__":
    sys.exit(main())
