"""Test packages images: their names, the Debian mirror, and the checks before a build."""

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offline import build, sources
from operations.common.console import StopError
from settings import packages
from settings.errors import InvalidSettingsError
from settings.images import ImagesSettings
from settings.parsing import parse_settings

DEB822 = """Types: deb
# http://commented.example/debian
URIs: https://mirror.example.com/debian/
Suites: bookworm bookworm-updates
Components: main
"""
SEAWEEDFS = {"kind": "seaweedfs", "memoryMb": 1024}


class Daemon:
    """A Docker daemon on this machine that has the given images."""

    host = "unix:///var/run/docker.sock"

    def __init__(self, *images: str, arch: str = "amd64") -> None:
        self.images = set(images)
        self.api = SimpleNamespace(version=lambda: {"Arch": arch})

    def has_image(self, name: str) -> bool:
        return name in self.images


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set up an x86-64 Debian host with an empty PATH and a temporary TMPDIR; return the commands that it ran."""
    ran: list[str] = []

    def run(command: list[Any], **_: object) -> "subprocess.CompletedProcess[str]":
        ran.append(" ".join(map(str, command)))
        return subprocess.CompletedProcess(command, 100, "", "E: Failed to fetch\nE: no mirror")

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(build, "interactive", lambda: False)
    return ran


def build_images(daemon: Daemon, *names: str) -> None:
    build.build(daemon, list(names or packages.NAMES), [])  # type: ignore[arg-type]


# --- names ---------------------------------------------------------------------------------------------------------


def test_the_tag_of_a_packages_image_depends_on_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(packages.FOLDER, tmp_path / "packages")
    before = {name: packages.ref(name) for name in packages.NAMES}
    assert before["postgres"].startswith("localhost/mlflow-packages/postgres:17-")
    monkeypatch.setattr(packages, "FOLDER", tmp_path / "packages")
    assert {name: packages.ref(name) for name in packages.NAMES} == before
    with (tmp_path / "packages" / "postgres" / "setup.sh").open("a") as script:
        script.write("# changed\n")
    assert packages.ref("postgres") != before["postgres"]
    assert packages.ref("seaweedfs") == before["seaweedfs"]
    with (tmp_path / "packages" / "build.sh").open("a") as script:
        script.write("# changed\n")
    assert packages.ref("seaweedfs") != before["seaweedfs"]


def test_packages_images_replace_every_image_that_is_not_set() -> None:
    images = {"source": "packages", "python": {"ref": "mirror.example.com/python:3.13"}}
    settings = parse_settings({"images": images, "objectStore": SEAWEEDFS})
    assert [image.ref for image in settings.pulled_images] == [
        packages.ref("postgres"),
        packages.ref("seaweedfs"),
        "mirror.example.com/python:3.13",
    ]
    assert settings.postgres_major == 17


def test_mlflow_is_built_on_the_builder_image_not_on_the_runtime_image() -> None:
    settings = parse_settings({"images": {"source": "packages"}, "objectStore": SEAWEEDFS})
    assert settings.images.builder.ref == packages.ref(packages.BUILDER)
    assert settings.images.builder.ref != settings.images.python.ref
    assert parse_settings({}).images.builder == parse_settings({}).images.python


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"images": {"source": "packages"}},
            "mlflow:images.source: MinIO cannot be built from packages; set mlflow:objectStore.kind to seaweedfs",
        ),
        (
            {"images": {"debianSources": ["deb https://mirror.example.com/debian trixie main"]}},
            "mlflow:images.debianSources: is ignored while mlflow:images.source is registry; remove it",
        ),
        (
            {
                "images": {"source": "packages", "debianSources": ["https://mirror.example.com"]},
                "objectStore": SEAWEEDFS,
            },
            "mlflow:images.debianSources.0: must be a line of apt's sources.list such as deb "
            "https://mirror.example.com/debian trixie main, got 'https://mirror.example.com'",
        ),
        (
            {"images": {"source": "package"}},
            "mlflow:images.source: must be one of 'registry' or 'packages', got 'package'",
        ),
    ],
)
def test_settings_that_packages_images_do_not_support_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettingsError) as error:
        parse_settings(values)
    assert error.value.problems == [words]


# --- the Debian mirror ---------------------------------------------------------------------------------------------


def test_the_mirror_of_a_debian_host_is_used_for_the_images_suite(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    off = DEB822.replace("mirror.example.com", "off.example.com").replace("Types:", "Enabled: no\nTypes:")
    (tmp_path / "sources.list.d" / "a.sources").write_text(off)
    (tmp_path / "sources.list").write_text("deb http://security.example.com/debian-security bookworm-security main\n")
    (tmp_path / "sources.list.d" / "old.list.save").write_text("deb http://gone.example.com/debian stretch main\n")
    (tmp_path / "sources.list.d" / "another.list").write_text("deb https://another.example.com/debian stable main\n")
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    assert sources.host_sources(tmp_path / "os-release", tmp_path) == [
        "deb https://mirror.example.com/debian/ trixie main",
        "deb https://mirror.example.com/debian/ trixie-updates main",
        "deb http://security.example.com/debian-security trixie-security main",
    ]


def test_the_mirror_of_a_host_that_is_not_debian_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://archive.example.com/ubuntu noble main\n")
    (tmp_path / "os-release").write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert sources.host_sources(tmp_path / "os-release", tmp_path) == []


# --- checks before a build -----------------------------------------------------------------------------------------


def test_an_image_that_is_there_is_not_built_again(bare: list[str]) -> None:
    build_images(Daemon(packages.ref("postgres"), packages.ref("seaweedfs")), "postgres", "seaweedfs")
    assert bare == []


def test_a_host_other_than_debian_or_ubuntu_is_refused(bare: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StopError, match=r"neither Debian nor Ubuntu\n.*without-a-registry\.md"):
        build_images(Daemon())
    assert bare == []


def test_a_missing_tool_without_root_is_reported_with_its_command(
    bare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StopError, match="type: sudo apt-get install mmdebstrap"):
        build_images(Daemon())
    assert bare == []


def test_a_failed_installation_is_reported_with_its_last_lines(
    bare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StopError, match=r"apt-get update -qq failed:(.|\n)*E: no mirror"):
        build_images(Daemon())
    assert bare == ["apt-get update -qq"]


def test_too_little_disk_space_is_reported_with_tmpdir_as_the_fix(
    bare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(StopError, match=r"disk: 1\.0 GB are free in .*; an image build needs 3 GB(.|\n)*TMPDIR="):
        build_images(Daemon())
    assert bare == []


def test_a_docker_host_of_another_architecture_is_refused(bare: list[str]) -> None:
    with pytest.raises(StopError, match=r"are built for this machine's architecture \(x86_64\)"):
        build_images(Daemon(arch="arm64"))
    assert bare == []


def test_every_failed_image_build_is_reported_with_its_log(
    bare: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/mmdebstrap")
    with pytest.raises(StopError) as error:
        build_images(Daemon(), "postgres", "python")
    words = str(error.value)
    assert "2 of 2 images could not be built; nothing was deployed" in words
    assert words.count("E: no mirror") == 2
    assert "postgres: mmdebstrap failed" in words
    assert len(bare) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_password_of_a_mirror_is_in_no_argument_and_no_message(
    bare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/mmdebstrap")
    with pytest.raises(StopError) as error:
        build.build(
            Daemon(),  # type: ignore[arg-type]
            ["postgres"],
            ["deb https://me:secret@mirror.example.com/debian trixie main"],
        )
    assert "https://mirror.example.com/debian trixie main" in str(error.value)
    assert "secret" not in str(error.value) + "".join(bare)


def test_the_builder_gets_the_pip_configuration_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        ":env:.index-url='https://mirror.example.com/simple'\n"
        "global.cert='/x'\nglobal.index-url='https://older.example.com'\nglobal.timeout='60'\n"
        "global.extra-index-url='\\nhttps://a.example.com\\nhttps://b.example.com'\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert sources.pip_settings() == {
        "index-url": "https://mirror.example.com/simple",
        "extra-index-url": "https://a.example.com\n    https://b.example.com",
        "proxy": "http://proxy.example.com:3128",
        "timeout": "60",
        "cert": "/x",
    }
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/company.pem")
    assert sources.pip_settings()["cert"] == "/company.pem"


def test_a_package_index_on_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "global.index-url='http://127.0.0.1:3141/simple'\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    with pytest.raises(StopError, match="pip's index-url is on this host's loopback address"):
        sources.pip_settings()


def test_every_recipe_belongs_to_an_image_setting() -> None:
    settings = {field.alias for field in ImagesSettings.model_fields.values()}
    assert set(packages.RECIPE_BY_IMAGE) <= settings
    assert set(packages.RECIPE_BY_IMAGE.values()) == set(packages.NAMES)
