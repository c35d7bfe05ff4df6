"""MinIO, an object store for the artifacts. Runs its maintained fork; see docs/adr/0001-minio-fork.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pulumi_docker as docker

from components.encryption import Encryption
from components.internal_tls import AUTHORITY, CERTIFICATE_FILE, KEY_FILE
from components.object_store import ADMIN, BACKUP_USER, MONITORING_USER, USER, ObjectStore
from components.platform import Platform
from components.scrape import Target, minio_token
from runtime.credentials import Credential
from runtime.job import Job
from runtime.service import Service
from runtime.workload import NOBODY, SECRETS, Files, HealthCheck, Limits, Metrics, Publish, Workload
from settings import names
from settings.object_store import ObjectStoreSettings

PORT = 9000
CONSOLE_PORT = 9001
HEALTH_PATH = "/minio/health/cluster"
CURL = ("curl", "-fsS", "--max-time", "4")
ASSETS = Path(__file__).parent.parent / "assets" / "minio"
CERTIFICATES_FOLDER = "certs"
CERTIFICATES = f"{SECRETS}/{CERTIFICATES_FOLDER}"
"""Folder with the certificate of the server and its key."""


class Minio(pulumi.ComponentResource):
    """One MinIO server with one bucket, on the internal network. Stateful.

    Creates the data volume, one secret key for each identity, the service `minio`, and the job `minio-bootstrap`, which
    creates the bucket and the identities.

    The server runs as root, but without any capability: the image declares its data volume without an owner, so no
    other user could write to a new volume.
    """

    store: ObjectStore
    """The interface for its clients."""

    def __init__(
        self,
        name: str,
        settings: ObjectStoreSettings,
        *,
        platform: Platform,
        encryption: Encryption,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run the server, and the job that creates its bucket and identities."""
        super().__init__("mlflow:components:Minio", name, None, opts)
        self._name, self._settings, self._platform, self._encryption = name, settings, platform, encryption
        root_password = Credential(f"{name}-root-password", "minioRootPassword", parent=self)
        identities = {USER: Credential(f"{name}-password", "minioPassword", parent=self)}
        if platform.backed_up:
            identities[BACKUP_USER] = Credential(f"{name}-backup-password", "minioBackupPassword", parent=self)
        if platform.monitored:
            identities[MONITORING_USER] = Credential(
                f"{name}-monitoring-password", "minioMonitoringPassword", parent=self
            )
        data = docker.Volume(
            f"{name}-data",
            name=names.object_store_volume(pulumi.get_stack(), "minio"),
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True, protect=platform.protect_data),
        )
        service = self._server(data, root_password)
        endpoint = f"{platform.tls.scheme}://{service.host}:{PORT}"
        bootstrap = self._bootstrap(service, endpoint, root_password, identities)
        monitoring = identities.get(MONITORING_USER)
        self.store = ObjectStore(
            kind="minio",
            endpoint=endpoint,
            health=f"{endpoint}{HEALTH_PATH}",
            bucket=settings.bucket,
            password=identities[USER],
            admin_password=root_password,
            backup_password=identities.get(BACKUP_USER),
            ready=bootstrap.done,
            credentials=[root_password, *identities.values()],
            targets=_targets(service.host, monitoring, tls=bool(platform.tls)) if monitoring else [],
        )
        self.register_outputs({"endpoint": endpoint, "bucket": settings.bucket, "volume": data.name})

    def _server(self, data: docker.Volume, root_password: Credential) -> Service:
        """Run the server on its data volume."""
        settings, platform = self._settings, self._platform
        with_console = settings.console_port is not None
        health = f"{platform.tls.scheme}://127.0.0.1:{PORT}{HEALTH_PATH}"
        trusted = ["--cacert", AUTHORITY] if platform.tls else []
        return Service(
            self._name,
            Workload(
                image=platform.images.minio,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=platform.networks.data_service_networks(published=with_console),
                entrypoint=["/usr/bin/silo"],
                command=[
                    *("server", "/data", "--console-address", f":{CONSOLE_PORT}"),
                    *(["--certs-dir", CERTIFICATES] if platform.tls else []),
                ],
                env={
                    # MinIO reads the file in /run/secrets and silently ignores a missing one. With a user but no
                    # password it refuses to start; without both it would accept minioadmin:minioadmin.
                    "MINIO_ROOT_USER": ADMIN,
                    "MINIO_ROOT_PASSWORD_FILE": "root-password",
                    "MINIO_BROWSER": "on" if with_console else "off",
                    "MINIO_UPDATE": "off",
                    **({"MINIO_KMS_SECRET_KEY_FILE": f"{SECRETS}/kms-secret-key"} if self._encryption.key else {}),
                    "HOME": "/tmp",  # noqa: S108 - inside the container
                    # Collect garbage before the kernel kills.
                    "GOMEMLIMIT": f"{settings.memory_mb * 9 // 10}MiB",
                },
                files=Files(
                    secrets={
                        "root-password": root_password.value,
                        **self._certificates(),
                        **self._encryption.for_minio,
                    }
                ),
                data={"/data": data.name},
                tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
                user="0:0",
            ),
            # MinIO's two other health endpoints answer before objects can be read or written.
            HealthCheck(command=[*CURL, *trusted, "-o", "/dev/null", health]),
            platform=platform,
            metrics=Metrics(port=PORT, path=METRICS_PATHS["minio"], scheme=platform.tls.scheme),
            grace_s=30,
            publish=[Publish(port=settings.console_port, target=CONSOLE_PORT)] if settings.console_port else [],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _certificates(self) -> dict[str, pulumi.Output[str]]:
        """Return the secret files of the server under the names that MinIO requires."""
        theirs = {CERTIFICATE_FILE: f"{CERTIFICATES_FOLDER}/public.crt", KEY_FILE: f"{CERTIFICATES_FOLDER}/private.key"}
        return {theirs.get(file, file): content for file, content in self._platform.tls.identity(self._name).items()}

    def _bootstrap(
        self, server: Service, endpoint: str, root_password: Credential, identities: Mapping[str, Credential]
    ) -> Job:
        """Create the bucket, and an identity with its policy for each of `identities`."""
        bucket = self._settings.bucket
        policies = {USER: policy(bucket), BACKUP_USER: reading_policy(bucket), MONITORING_USER: METRICS_POLICY}
        return Job(
            f"{self._name}-bootstrap",
            Workload(
                image=self._platform.images.minio_client,
                limits=Limits(memory_mb=256, cpus=1.0),
                prepares=names.object_store_volume(pulumi.get_stack(), "minio"),
                networks=[self._platform.networks.backend],
                entrypoint=["sh", "/run/config/bootstrap.sh"],
                env={
                    "ENDPOINT": endpoint,
                    "BUCKET": bucket,
                    "MC_CONFIG_DIR": "/tmp/mc",  # noqa: S108 - inside the container
                    **({"ENCRYPTION": "on" if self._encryption.on else "off"} if self._encryption.key else {}),
                },
                files=Files(
                    secrets={
                        "mc-config.json": _client_config(endpoint, root_password.value),
                        **self._platform.tls.trust,
                        **self._encryption.data_keys,
                        **{f"{user}-secret-key": identity.value for user, identity in identities.items()},
                    },
                    config={
                        "bootstrap.sh": (ASSETS / "bootstrap.sh").read_text(),
                        **{f"{user}-policy.json": json.dumps(policies[user], indent=2) for user in identities},
                    },
                ),
                tmpfs={"/tmp": "size=16m,mode=1777"},  # noqa: S108 - inside the container
                user=NOBODY,
            ),
            platform=self._platform,
            after=[server.ready],
            opts=pulumi.ResourceOptions(parent=self),
        )


METRICS_PATHS = {
    "minio": "/minio/v2/metrics/cluster",
    "minio-node": "/minio/v2/metrics/node",
    "minio-bucket": "/minio/v2/metrics/bucket",
}
METRICS_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["admin:Prometheus"]}]}
"""The policy of Prometheus: it may read metrics, but no objects."""


def _targets(host: str, secret_key: Credential, *, tls: bool) -> list[Target]:
    token = secret_key.value.apply(lambda value: minio_token(MONITORING_USER, value))
    return [
        Target(job=job, instance="minio", address=f"{host}:{PORT}", path=path, every_s=30, secret=token, tls=tls)
        for job, path in METRICS_PATHS.items()
    ]


def _client_config(endpoint: str, secret_key: pulumi.Output[str]) -> pulumi.Output[str]:
    """Return the configuration of `mc`. Without it, `mc` needs the root password in its environment. Secret."""
    alias = {"url": endpoint, "accessKey": ADMIN, "secretKey": secret_key, "api": "S3v4", "path": "on"}
    return pulumi.Output.json_dumps({"version": "10", "aliases": {"store": alias}})


def policy(bucket: str) -> dict[str, Any]:
    """Return MLflow's policy: it may use its bucket, but neither create nor list others, nor administer MinIO."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
                # Newer releases refuse bucket-level calls unless the policy names the bucket as well as its objects.
                "Resource": [f"arn:aws:s3:::{bucket}"],
            },
            {
                "Effect": "Allow",
                "Action": [
                    "s3:AbortMultipartUpload",
                    "s3:DeleteObject",
                    "s3:GetObject",
                    "s3:ListMultipartUploadParts",
                    "s3:PutObject",
                ],
                "Resource": [f"arn:aws:s3:::{bucket}/*"],
            },
        ],
    }


def reading_policy(bucket: str) -> dict[str, Any]:
    """Return the backup's policy: it may read everything in MLflow's bucket."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject"],
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            }
        ],
    }
