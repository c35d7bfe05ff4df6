"""Test SeaweedFS as the object store of a real deployment, and the move of artifacts to MinIO and back."""

import pytest

from components.seaweedfs import client_ca_certificate
from tests.stack.deployment import Deployment
from tests.stack.probes import HASHES, REWRITE, with_s3

pytestmark = pytest.mark.long


def hashes(deployment: Deployment) -> list[str]:
    """Return every artifact with its SHA-256, read from the object store that the server uses."""
    code, said = with_s3(deployment, HASHES)
    assert code == 0, said
    return sorted(said.splitlines())


def written_again(deployment: Deployment) -> list[str]:
    """Change some objects, and return every artifact with its SHA-256."""
    code, said = with_s3(deployment, REWRITE)
    assert code == 0, said
    return hashes(deployment)


def test_a_client_works_with_seaweedfs(seaweedfs: Deployment) -> None:
    assert "600 MB up" in seaweedfs.client_day(seaweedfs.url, megabytes=600)
    assert seaweedfs.inspect("seaweedfs")["RestartCount"] == 0


def test_the_seaweedfs_admin_port_requires_the_certificate_of_the_stack(seaweedfs: Deployment) -> None:
    def code(certificate: str) -> int:
        gateway = ("--insecure", "--silent", "--max-time", "10", "https://127.0.0.1:18333/")
        return seaweedfs.run("seaweedfs", "curl", *certificate.split(), *gateway)[0]

    foreign = "/tmp/foreign.pem"  # noqa: S108 - in the container
    seaweedfs.run("seaweedfs", "sh", "-c", f"echo '{client_ca_certificate('a secret of his own')}' > {foreign}")
    refused = (55, 56)
    assert code("--cert /run/secrets/grpc.pem") == 0
    assert code("") in refused
    assert code(f"--cert {foreign}") in refused


@pytest.mark.minio
def test_artifacts_move_to_minio_and_back_unchanged(seaweedfs: Deployment) -> None:
    if seaweedfs.values.get("mlflow:images", {}).get("source") == "packages":
        pytest.skip("needs the images of both object stores under their default names")
    seaweedfs.client_day(seaweedfs.url, megabytes=5)
    before = written_again(seaweedfs)
    for old, new in (("seaweedfs", "minio"), ("minio", "seaweedfs")):
        seaweedfs.set("objectStore", {"kind": new, "memoryMb": 1024})
        assert f"{new} would start without this stack's artifacts" in seaweedfs.make("up", ok=False).stderr
        seaweedfs.set("objectStore", {"kind": new, "copyFrom": old, "memoryMb": 1024})
        assert f"docker stop {seaweedfs.name('server')}" in seaweedfs.make("up", ok=False).stderr
        seaweedfs.api.stop(seaweedfs.name("server"))
        # Docker starts what was only stopped again, when its daemon restarts.
        assert "it starts the server again" in seaweedfs.make("up", ok=False).stderr
        seaweedfs.api.update_container(seaweedfs.name("server"), restart_policy={"Name": "no"})  # type: ignore[arg-type]
        seaweedfs.make("up")
        assert hashes(seaweedfs) == before
        server = seaweedfs.api.inspect_container(seaweedfs.name("server"))
        assert server["HostConfig"]["RestartPolicy"]["Name"] == "always"
        if not seaweedfs.engineless:
            seaweedfs.pulumi("preview", "--expect-no-changes")
        assert f"copyFrom: the server uses {new} already" in seaweedfs.make("up", ok=False).stderr
        seaweedfs.set("objectStore", {"kind": new, "memoryMb": 1024})
        seaweedfs.make("up")
        assert seaweedfs.name(old) not in seaweedfs.containers()
        # The volume of the old object store stays; its content is outdated when the artifacts move back.
        after = written_again(seaweedfs)
        assert set(before) != set(after)
        before = after
