"""Scripts that run inside a deployment, to see it as its containers do."""

import ipaddress
from pathlib import Path

import docker

from tests.stack.deployment import Deployment

S3 = """
import boto3, botocore, sys
def client(key=None, secret=None):
    config = botocore.config.Config(signature_version=botocore.UNSIGNED) if key is None else None
    return boto3.client("s3", endpoint_url=sys.argv[1], aws_access_key_id=key, aws_secret_access_key=secret,
                        region_name="us-east-1", config=config)
def refused(call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"] in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
    return False
own = boto3.Session().client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
own.put_object(Bucket="mlflow", Key="probe", Body=b"x")
assert own.get_object(Bucket="mlflow", Key="probe")["Body"].read() == b"x"
own.delete_object(Bucket="mlflow", Key="probe")
assert refused(client("minioadmin", "minioadmin").list_buckets), "default credentials"
assert refused(client().list_objects_v2, Bucket="mlflow"), "anonymous"
assert refused(own.create_bucket, Bucket="another"), "creates a bucket"
assert refused(own.list_objects_v2, Bucket="mlflow2"), "another bucket"
assert [bucket["Name"] for bucket in own.list_buckets()["Buckets"]] == ["mlflow"], "sees another bucket"
print("ok")
"""
"""Checks which identity may do what in the object store. Runs with the identity of the server."""

HASHES = """
import boto3, hashlib, sys
store = boto3.client("s3", endpoint_url=sys.argv[1])
for page in store.get_paginator("list_objects_v2").paginate(Bucket="mlflow"):
    for found in page.get("Contents", []):
        digest = hashlib.sha256()
        for block in store.get_object(Bucket="mlflow", Key=found["Key"])["Body"].iter_chunks(1 << 20):
            digest.update(block)
        print(found["Key"], digest.hexdigest())
"""
"""Prints every artifact with its SHA-256."""


REWRITE = """
import boto3, sys
store = boto3.client("s3", endpoint_url=sys.argv[1])
for key in ("moved/plots.png", "moved/plots/a.png", "moved/ü +%&=.bin"):
    found = [each["Key"] for each in store.list_objects_v2(Bucket="mlflow", Prefix=key).get("Contents", [])]
    before = store.get_object(Bucket="mlflow", Key=key)["Body"].read() if key in found else b"-"
    store.put_object(Bucket="mlflow", Key=key, Body=bytes([before[0] + 1]))
"""
"""Changes objects at the same size, with unusual names and names that the stores list in different orders."""


def host_as_containers_see_it(api: docker.APIClient) -> str:
    """Return the address of the host on Docker's default bridge."""
    network = api.inspect_network("bridge")["IPAM"]["Config"][0]
    # A daemon that has just created the bridge does not report its gateway; it uses the first address.
    return str(network.get("Gateway") or next(ipaddress.ip_network(network["Subnet"]).hosts()))


def with_s3(deployment: Deployment, script: str) -> tuple[int, str]:
    """Run a script in the server with its identity; the argument is the address of the object store."""
    identity = "AWS_SHARED_CREDENTIALS_FILE=/run/secrets/aws-credentials"
    environment = dict(entry.split("=", 1) for entry in deployment.inspect("server")["Config"]["Env"])
    return deployment.run("server", "env", identity, "python", "-c", script, environment["MLFLOW_S3_ENDPOINT_URL"])


def is_on_disk(deployment: Deployment, part: bytes) -> bool:
    """Return whether a file in the volume of SeaweedFS has these bytes."""
    volume = deployment.api.inspect_volume(deployment.name("seaweedfs-data"))["Mountpoint"]
    return any(part in path.read_bytes() for path in Path(volume).rglob("*") if path.is_file())


GATEWAY_SECRET = """
import os, psycopg2, mlflow.utils.crypto as c
os.environ["MLFLOW_CRYPTO_KEK_PASSPHRASE"] = open("/run/secrets/crypto-kek-passphrase").read()
wrapped = c.wrap_dek(b"0" * 32, c.KEKManager().get_kek())
db = psycopg2.connect(os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", ""))
columns = "secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, masked_value, created_at"
query = f"insert into secrets ({columns}, last_updated_at) values (1, 1, %s, %s, 1, 1, 0, 0)"
db.cursor().execute(query, (b"x", wrapped))
db.commit()
"""
"""Stores a gateway secret as MLflow does: its key is wrapped with the passphrase."""


def keep_a_gateway_secret(deployment: Deployment) -> None:
    """Store something in the database that only the data key decrypts."""
    command = ("env", "PGPASSFILE=/run/mlflow/pgpass", "python", "-W", "ignore", "-c", GATEWAY_SECRET)
    code, said = deployment.run("server", *command)
    assert code == 0, said


SCAN = """
import socket, sys
for host in sys.argv[1:]:
    ports = []
    for port in [*range(1, 10100), 15432, *range(18000, 20000), 33060]:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex((host, port)) == 0:
                ports.append(port)
    print(host, ports)
"""


def from_network(deployment: Deployment, network: str, script: str, *arguments: str) -> str:
    """Run a Python script in a new container on `network` and return what it printed."""
    container = deployment.api.create_container(
        deployment.inspect("server")["Image"],
        command=["python", "-c", script, *arguments],
        labels={"mlflow.stack": deployment.stack},
        host_config=deployment.api.create_host_config(network_mode=network),
    )
    deployment.api.start(container)
    deployment.api.wait(container)
    said = deployment.api.logs(container).decode()
    deployment.api.remove_container(container)
    return str(said)


def scan(deployment: Deployment, network: str, *services: str) -> str:
    """Scan the ports of containers from `network`."""
    return from_network(deployment, network, SCAN, *[deployment.name(service) for service in services])


CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=2)
        print("open")
    except OSError:
        print("closed")
"""
