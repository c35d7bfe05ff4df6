"""Test the engine-less deployment without a daemon: what it supports, what it refuses, what it stores."""

import io
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from offline.bodies import EngineLessError, container_body, tar_archive
from offline.host import Host
from offline.monitor import run
from offline.passwords import Passwords

PROGRAM = """
import pulumi, pulumi_docker as docker, pulumi_random as random
password = random.RandomPassword("password", length=20, special=False)
volume = docker.Volume("volume", name="the-volume", labels=[{{"label": "mlflow.stack", "value": "dev"}}])
network = docker.Network("network", name="the-network", internal=True)
image = docker.RemoteImage("image", name="an-image:1")
def container(name, **arguments):
    return docker.Container(name, name=f"the-{{name}}", image=image.image_id, **arguments)
writer = container("writer", start=False, must_run=False,
                   uploads=[{{"file": "/x/password", "content": password.result, "permissions": "0444"}}])
reader = container("reader", volumes=[{{"volume_name": volume.name, "container_path": "/x"}}],
                   networks_advanced=[{{"name": network.id}}],
                   opts=pulumi.ResourceOptions(depends_on=[writer], replace_with=[writer]))
{more}
"""


class Made(Host):
    """A Docker host that has every image and records what it is asked to create."""

    def __init__(self, failing: str | None = None) -> None:
        self.stack = "dev"
        self.failing = failing
        self.images: list[dict[str, Any]] = []
        self.networks: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        self.containers: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.made: set[str] = set()

    def image(self, inputs: dict[str, Any]) -> str:
        self.images.append(inputs)
        return "sha256:1"

    def must_build(self, _inputs: dict[str, Any]) -> bool:
        return False

    def network(self, inputs: dict[str, Any]) -> str:
        self.networks.append(inputs)
        return "network-id"

    def volume(self, inputs: dict[str, Any]) -> str:
        self.volumes.append(inputs)
        return str(inputs["name"])

    def container(self, inputs: dict[str, Any], follows: Mapping[str, str]) -> tuple[str, str]:
        if inputs["name"] == self.failing:
            raise EngineLessError("there is no room")
        self.containers.append((inputs, dict(follows)))
        self.made.add(inputs["name"])
        return f"{inputs['name']}-id", f"{inputs['name']}-hash"


def deploy(
    folder: Path, more: str = "", *, program: str = PROGRAM, failing: str | None = None
) -> tuple[Made, list[str]]:
    """Run a program without the engine; return what it created and its problems."""
    file = folder / "program.py"
    file.write_text(program.format(more=more))
    host = Made(failing)
    # A separate thread, because Pulumi binds its settings to a context and its event loop to a thread.
    with ThreadPoolExecutor(1) as alone:
        problems = alone.submit(
            run,
            file,
            host=host,
            passwords=Passwords(folder / "passwords.json"),
            project="mlflow",
            config={"mlflow:number": "4"},
            say=lambda _: None,
        ).result()
    return host, problems


def test_values_pass_from_one_resource_to_the_next(tmp_path: Path) -> None:
    host, problems = deploy(tmp_path)
    assert problems == []
    (writer, _), (reader, follows) = host.containers
    assert writer["image"] == "sha256:1"
    assert writer["uploads"][0]["content"] == Passwords(tmp_path / "passwords.json").read()["password"]
    assert reader["volumes"] == [{"volumeName": "the-volume", "containerPath": "/x"}]
    assert reader["networksAdvanced"] == [{"name": "network-id"}]
    assert follows == {"the-writer": "the-writer-hash"}


def test_a_password_is_generated_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first, _ = deploy(tmp_path)
    again, _ = deploy(tmp_path)
    assert first.containers[0][0]["uploads"] == again.containers[0][0]["uploads"]
    (password,) = Passwords(tmp_path / "passwords.json").read().values()
    assert len(password) == 20
    assert password.isalnum()
    assert (tmp_path / "passwords.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('docker.Secret("s", data="eA==")', "not supported without the engine: this type of resource"),
        ('random.RandomPassword("p", length=20)', "without the engine: passwords with special characters"),
        ('docker.get_network_output(name="bridge")', "the engine: the function docker:index/getNetwork:getNetwork"),
        ('docker.Volume.get("v", "some-id")', "not supported without the engine: to read docker:index/volume:Volume v"),
        (
            'docker.Volume("v", opts=pulumi.ResourceOptions(import_="an-id"))',
            "not supported without the engine: the option importId",
        ),
        ('raise pulumi.RunError("the settings are wrong")', "the settings are wrong"),
    ],
)
def test_unsupported_resources_and_options_are_refused_by_name(tmp_path: Path, more: str, words: str) -> None:
    _, problems = deploy(tmp_path, more)
    assert words in "\n".join(problems)


def test_a_failed_resource_is_named_and_its_dependents_are_not_created(tmp_path: Path) -> None:
    host, problems = deploy(tmp_path, failing="the-writer")
    assert problems == ["writer (docker:index/container:Container): there is no room"]
    assert host.containers == []


def test_a_failure_ends_every_pending_wait(tmp_path: Path) -> None:
    slow = "import asyncio\npulumi.Output.from_input(asyncio.sleep(3600)).apply(lambda _: volume)"
    _, problems = deploy(tmp_path, slow, failing="the-writer")
    assert problems == ["writer (docker:index/container:Container): there is no room"]


def test_an_exception_in_the_program_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        deploy(tmp_path, "1 / 0")


def test_an_unknown_argument_is_refused() -> None:
    host = Host(daemon=None, stack="dev", folder=Path())  # type: ignore[arg-type]
    with pytest.raises(EngineLessError, match="c: not supported without the engine: gpus, privileged"):
        host.container({"name": "c", "privileged": True, "gpus": "all"}, follows={})
    with pytest.raises(EngineLessError, match="n: not supported without the engine: ipv6"):
        host.network({"name": "n", "ipv6": True})


def test_a_container_is_described_in_the_units_of_docker() -> None:
    inputs = {
        "name": "c",
        "image": "sha256:1",
        "memory": 256,
        "memorySwap": 256,
        "cpus": "1.5",
        "tmpfs": {"/tmp": "size=64m"},  # noqa: S108 - in a container
        "ports": [{"internal": 5000, "external": 5001, "ip": "127.0.0.1", "protocol": "tcp"}],
        "healthcheck": {
            "tests": ["CMD", "x"],
            "interval": "1m30s",
            "timeout": "5s",
            "startPeriod": "10m0s",
            "retries": 3,
        },
        "labels": [{"label": "a", "value": "b"}],
    }
    body = container_body(inputs, {"mark": "1"})
    host = body["HostConfig"]
    assert body["Labels"] == {"a": "b", "mark": "1"}
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (256 << 20, 256 << 20, 1_500_000_000)
    assert host["PortBindings"] == {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "5001"}]}
    assert body["Healthcheck"]["Interval"] == 90 * 10**9
    assert body["Healthcheck"]["StartPeriod"] == 600 * 10**9


def test_all_files_of_a_container_are_uploaded_in_one_archive() -> None:
    uploads = [
        {"file": "/run/secrets/password", "content": "pässword", "permissions": "0444"},
        {"file": "/run/config/start.sh", "content": "exec true\n", "permissions": "0555"},
    ]
    with tarfile.open(fileobj=io.BytesIO(tar_archive(uploads))) as tar:
        found = [(entry.name, entry.mode, tar.extractfile(entry)) for entry in tar]
        assert [(name, mode, file.read().decode()) for name, mode, file in found if file] == [
            ("run/secrets/password", 0o444, "pässword"),
            ("run/config/start.sh", 0o555, "exec true\n"),
        ]
