"""SeaweedFS, an object store for the artifacts, as an alternative to MinIO; see docs/adr/0008-seaweedfs.md."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.encryption import Encryption
from components.internal_tls import AUTHORITY, CERTIFICATE, KEY
from components.object_store import ADMIN, BACKUP_USER, REGION, USER, ObjectStore
from components.platform import Platform
from components.scrape import Target
from runtime.credentials import Credential
from runtime.job import Job
from runtime.service import Service
from runtime.workload import NOBODY, Files, HealthCheck, Limits, Metrics, Workload
from settings import names
from settings.object_store import ObjectStoreSettings

PORT = 8333
HEALTH_PATH = "/healthz"
METRICS_PORT = 9327
MASTER_PORT = 9333
GRPC_PORT = 18333
"""Port on which the gateway accepts new identities, from anybody unless it requires a client certificate."""
UID = 1000
"""UID of the user `seaweed` of the official image. It owns the data folder, and so owns a new volume."""
CURL = ("curl", "-fsS", "--fail-early", "--max-time", "4")
CURL_FILES = {ADMIN: "admin", USER: "mlflow"}
"""The names of the files with which the job `seaweedfs-bootstrap` authenticates, if not those of the identities."""
ASSETS = Path(__file__).parent.parent / "assets" / "seaweedfs"


class Seaweedfs(pulumi.ComponentResource):
    """One SeaweedFS server with one bucket, on the internal network. Stateful.

    Creates the data volume, one secret key for each identity, the service `seaweedfs`, and the job
    `seaweedfs-bootstrap`, which creates the bucket and verifies the permissions.

    Master, volume server, filer and S3 gateway run in one process. Only the S3 API authenticates, so the others listen
    on the loopback address of the container: through an open filer, everybody on the network could read, write and
    delete. The gateway's gRPC port cannot be moved there or turned off, and everybody who reaches it can become an
    administrator. So it requires a client certificate that only the server has.
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
        """Run the server, and the job that creates its bucket and verifies the permissions."""
        super().__init__("mlflow:components:Seaweedfs", name, None, opts)
        self._name, self._settings, self._platform, self._encryption = name, settings, platform, encryption
        identities = {
            ADMIN: Credential(f"{name}-admin-password", "seaweedfsAdminPassword", parent=self),
            USER: Credential(f"{name}-password", "seaweedfsPassword", parent=self),
        }
        if platform.backed_up:
            identities[BACKUP_USER] = Credential(f"{name}-backup-password", "seaweedfsBackupPassword", parent=self)
        data = docker.Volume(
            f"{name}-data",
            name=names.object_store_volume(pulumi.get_stack(), "seaweedfs"),
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True, protect=platform.protect_data),
        )
        service = self._server(data, identities)
        endpoint = f"{platform.tls.scheme}://{service.host}:{PORT}"
        bootstrap = self._bootstrap(service, endpoint, identities)
        self.store = ObjectStore(
            kind="seaweedfs",
            endpoint=endpoint,
            health=f"{endpoint}{HEALTH_PATH}",
            bucket=settings.bucket,
            password=identities[USER],
            admin_password=identities[ADMIN],
            backup_password=identities.get(BACKUP_USER),
            ready=bootstrap.done,
            credentials=[*identities.values()],
            # SeaweedFS has no TLS for its metrics.
            targets=[]
            if platform.tls
            else [Target(job="seaweedfs", instance="seaweedfs", address=f"{service.host}:{METRICS_PORT}", every_s=30)],
        )
        self.register_outputs({"endpoint": endpoint, "bucket": settings.bucket, "volume": data.name})

    def _server(self, data: docker.Volume, identities: Mapping[str, Credential]) -> Service:
        """Run the server on its data volume."""
        settings, platform = self._settings, self._platform
        readers = {user: identities[user] for user in identities if user not in (ADMIN, USER)}
        gateway = f"{platform.tls.scheme}://127.0.0.1:{PORT}{HEALTH_PATH}"
        trusted = ["--cacert", AUTHORITY] if platform.tls else []
        assign = f"http://127.0.0.1:{MASTER_PORT}/dir/assign?collection={settings.bucket}"
        return Service(
            self._name,
            Workload(
                image=platform.images.seaweedfs,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                # With TLS it has no scrape target, but the blackbox exporter probes it there.
                networks=[
                    platform.networks.backend,
                    *([platform.monitoring_network] if platform.tls and platform.monitoring_network else []),
                ],
                entrypoint=["/usr/bin/weed"],
                command=[
                    *(["-config_dir=/run/secrets"] if self._encryption.key else []),
                    *_command(settings.memory_mb, tls=bool(platform.tls)),
                ],
                env={
                    # The official image's filer.toml has the same settings; without them, the index is elsewhere.
                    "WEED_LEVELDB2_ENABLED": "true",
                    "WEED_LEVELDB2_DIR": "/data/filerldb2",
                    "WEED_GRPC_CA": "/run/secrets/grpc.pem",
                    "WEED_GRPC_S3_CERT": "/run/secrets/grpc.pem",
                    "WEED_GRPC_S3_KEY": "/run/secrets/grpc.pem",
                    "HOME": "/tmp",  # noqa: S108 - inside the container
                    # Collect garbage before the kernel kills.
                    "GOMEMLIMIT": f"{settings.memory_mb * 7 // 10}MiB",
                },
                files=Files(
                    secrets={
                        "identities.json": _identities(settings.bucket, identities[ADMIN], identities[USER], readers),
                        "grpc.pem": identities[ADMIN].value.apply(client_ca_certificate),
                        **platform.tls.identity(self._name),
                        **self._encryption.for_seaweedfs,
                    },
                ),
                data={"/data": data.name},
                tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
                user=f"{UID}:{UID}",
            ),
            HealthCheck(
                # The gateway is ready before the volumes are, so the check also asks the master to assign an object.
                command=[*CURL, *trusted, "-o", "/dev/null", gateway, "-o", "/dev/null", assign],
            ),
            platform=platform,
            # A timeout within SeaweedFS takes 15 s of the stop grace period.
            metrics=None if platform.tls else Metrics(port=METRICS_PORT),
            grace_s=40,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _bootstrap(self, server: Service, endpoint: str, identities: Mapping[str, Credential]) -> Job:
        """Create the bucket, and verify what each identity may do."""
        return Job(
            f"{self._name}-bootstrap",
            Workload(
                image=self._platform.images.seaweedfs,
                limits=Limits(memory_mb=128, cpus=1.0),
                prepares=names.object_store_volume(pulumi.get_stack(), "seaweedfs"),
                networks=[self._platform.networks.backend],
                entrypoint=["sh", "/run/config/bootstrap.sh"],
                env={
                    "ENDPOINT": endpoint,
                    "BUCKET": self._settings.bucket,
                    "GRPC": f"https://{server.host}:{GRPC_PORT}",
                    **({"CURL_CA_BUNDLE": AUTHORITY} if self._platform.tls else {}),
                    **({"ENCRYPTION": "on" if self._encryption.on else "off"} if self._encryption.key else {}),
                },
                files=Files(
                    secrets={
                        f"{CURL_FILES.get(user, user)}.curl": _curl_config(user, identity.value)
                        for user, identity in identities.items()
                    }
                    | self._platform.tls.trust
                    | self._encryption.data_keys,
                    config={"bootstrap.sh": (ASSETS / "bootstrap.sh").read_text()},
                ),
                user=NOBODY,
            ),
            platform=self._platform,
            after=[server.ready],
            opts=pulumi.ResourceOptions(parent=self),
        )


def _command(memory_mb: int, *, tls: bool) -> list[str]:
    flags = {
        "dir": "/data",
        # Everything but the gateway and the metrics stays inside the container.
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3": "true",
        "s3.ip.bind": "0.0.0.0",  # noqa: S104 - inside the container
        "s3.config": "/run/secrets/identities.json",
        "s3.iam": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        # Unlimited by default: a download of 600 MB takes 600 MB. With a smaller cache, everything is read twice.
        "s3.readerCacheSizeMB": str(memory_mb // 4),
        "s3.concurrentUploadLimitMB": "64",
        "volume.concurrentUploadLimitMB": "64",
        "volume.concurrentDownloadLimitMB": "64",
        "metricsIp": "127.0.0.1" if tls else "0.0.0.0",  # noqa: S104 - inside the container
        **({"s3.cert.file": CERTIFICATE, "s3.key.file": KEY} if tls else {}),
        "metricsPort": str(METRICS_PORT),
        "master.telemetry": "false",
        # As many volumes as fit on the disk, of a size that vacuuming can copy.
        "volume.max": "0",
        "master.volumeSizeLimitMB": "1024",
        # There is only one master: an election would take 10 s, and so would a stop.
        "master.electionTimeout": "1s",
        "volume.preStopSeconds": "1",
    }
    return ["-logtostderr=true", "server", *(f"-{flag}={value}" for flag, value in flags.items())]


def _identities(
    bucket: str, admin: Credential, user: Credential, readers: Mapping[str, Credential]
) -> pulumi.Output[str]:
    """Return the identities and their permissions. MLflow may neither create nor list other buckets. Secret."""

    def identity(name: str, secret_key: Credential, actions: list[str]) -> dict[str, object]:
        return {"name": name, "credentials": [{"accessKey": name, "secretKey": secret_key.value}], "actions": actions}

    return pulumi.Output.json_dumps(
        {
            "identities": [
                identity(ADMIN, admin, ["Admin", "Read", "Write", "List", "Tagging"]),
                identity(USER, user, [f"{action}:{bucket}" for action in ("Read", "Write", "List", "Tagging")]),
                *(
                    identity(name, secret_key, [f"{action}:{bucket}" for action in ("Read", "List")])
                    for name, secret_key in readers.items()
                ),
            ]
        }
    )


def client_ca_certificate(secret: str) -> str:
    """Return a certificate and its key, in PEM. The certificate is its own and only certificate authority.

    A server that requires a client certificate from this authority accepts only clients that have read this file. The
    result is derived from `secret` alone, so that every plan creates the same one.
    """
    # Imported here because the import takes a tenth of a preview.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    # A slow function: the public key is visible to clients, and a secret that a person chose could be guessed from it.
    seed = hashlib.scrypt(secret.encode(), salt=b"seaweedfs grpc", n=2**14, r=8, p=1, dklen=32)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "seaweedfs")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("seaweedfs")]), critical=False)
        .sign(key, None)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()


def _curl_config(identity: str, secret_key: pulumi.Output[str]) -> pulumi.Output[str]:
    """Return the configuration with which `curl` signs requests as `identity`. Secret."""
    return pulumi.Output.concat(f'aws-sigv4 = "aws:amz:{REGION}:s3"\nuser = "{identity}:', secret_key, '"\n')
