"""Test `make upgrade`: which versions it finds, what it says of them, and the pins that it writes."""

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs
from zipfile import ZipFile

import pytest
from docker.errors import APIError
from packaging.requirements import Requirement

from operations.common.console import StopError
from operations.upgrading import registry, release, upgrade
from operations.upgrading.registry import RegistryError
from operations.upgrading.release import PackageIndexError
from operations.upgrading.versions import Newer, newer
from settings.images import ImagesSettings

OLD_DIGEST, NEW_DIGEST = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.mark.parametrize(
    ("tag", "tags", "found"),
    [
        ("18.6", ["18.5", "18.6", "18.10", "18.9", "18.11-alpine", "18", "latest", "19.1"], Newer("18.10", "19.1")),
        ("v3.7.15", ["v3.7.16", "v3.8.0-rc.1", "3.9.0", "v4.0.0-rc1"], Newer("v3.7.16", None)),
        (
            "RELEASE.2026-09-16T00-00-00Z",
            ["RELEASE.2025-12-01T00-00-00Z", "RELEASE.2027-01-02T03-04-05Z", "RELEASE.2027-01-02T03-04-05Z-cpuv1"],
            Newer("RELEASE.2027-01-02T03-04-05Z", None),
        ),
        ("4.48", ["4.48", "4.47"], Newer(None, None)),
        ("latest", ["newer", "latest"], Newer(None, None)),
    ],
)
def test_a_newer_tag_has_the_same_form_and_a_greater_version(tag: str, tags: list[str], found: Newer) -> None:
    assert newer(tag, tags) == found


class Registry(http.server.ThreadingHTTPServer):
    """A registry with two tags a page, which asks for a token, or for name and password."""

    def __init__(self, asks: str, tags: list[str], password: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asks, self.tags, self.password = asks, tags, password
        self.links = ""
        self.host = f"127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    """One answer of the registry."""

    server: Registry

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        allowed = form["grant_type"] == ["refresh_token"] and form["refresh_token"] == ["an identity"]
        self.answer(200 if allowed else 401, {"access_token": "t"})

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        user = base64.b64encode(f"me:{self.server.password}".encode()).decode()
        if self.path.startswith("/token"):
            allowed = self.server.password is None or given == f"Basic {user}"
            assert "scope=repository%3Aours%2Fpostgres%3Apull" in self.path
            self.answer(200 if allowed else 401, {"token": "t"})
            return
        expected = {"bearer": "Bearer t", "basic": f"Basic {user}", "nothing": given}[self.server.asks]
        if given != expected:
            realm = f'Bearer realm="http://{self.server.host}/token",service="r",scope="repository:ours/postgres:pull"'
            self.answer(401, {}, **{"WWW-Authenticate": realm if self.server.asks == "bearer" else 'Basic realm="r"'})
            return
        path, _, query = self.path.partition("?")
        if path != "/v2/ours/postgres/tags/list":
            self.answer(404, {})
            return
        start = int(query.partition("last=")[2] or 0)
        more = start + 2 < len(self.server.tags)
        link = (
            {"Link": f'<{self.server.links}/v2/ours/postgres/tags/list?n=2&last={start + 2}>; rel="next"'}
            if more
            else {}
        )
        self.answer(200, {"tags": self.server.tags[start : start + 2] or None}, **link)

    def answer(self, code: int, body: object, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start registries, and return their addresses. `docker login` has been typed with the password `right`."""
    started: list[Registry] = []

    def start(
        asks: str, tags: list[str], password: str | None = None, *, login: str | None = None, links: str = ""
    ) -> str:
        server = Registry(asks, tags, password)
        server.links = links
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        if login:
            auth = base64.b64encode(f"me:{login}".encode()).decode()
            entry = {"identitytoken": login} if login == "an identity" else {"auth": auth}
            (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: entry}}))
        return server.host

    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("asks", ["nothing", "bearer"])
def test_every_page_of_tags_is_read_without_a_login(serve: Callable[..., str], asks: str) -> None:
    host = serve(asks, ["18.5", "18.6", "18.7", "19.0", "latest"])
    assert registry.tags(f"{host}/ours/postgres") == ["18.5", "18.6", "18.7", "19.0", "latest"]


@pytest.mark.parametrize("asks", ["basic", "bearer"])
def test_a_private_registry_is_asked_with_the_login_of_docker(serve: Callable[..., str], asks: str) -> None:
    host = serve(asks, ["18.6"], password="right", login="right")
    assert registry.tags(f"{host}/ours/postgres") == ["18.6"]


@pytest.mark.parametrize("asks", ["basic", "bearer"])
@pytest.mark.parametrize("login", [None, "wrong"])
def test_a_refused_login_is_reported_with_the_command(serve: Callable[..., str], asks: str, login: str | None) -> None:
    host = serve(asks, ["18.6"], password="right", login=login)
    with pytest.raises(RegistryError, match=f"{host} refuses the login.*\n    type: docker login {host}") as caught:
        registry.tags(f"{host}/ours/postgres")
    assert "wrong" not in str(caught.value)


def test_a_missing_repository_and_a_registry_without_an_answer_are_reported(serve: Callable[..., str]) -> None:
    host = serve("nothing", [])
    with pytest.raises(RegistryError, match="does not have this repository"):
        registry.tags(f"{host}/ours/other")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1 does not answer: no connection"):
        registry.tags("127.0.0.1:1/ours/postgres")


def test_an_identity_token_is_exchanged_for_a_token(serve: Callable[..., str]) -> None:
    host = serve("bearer", ["18.6"], password="right", login="an identity")
    assert registry.tags(f"{host}/ours/postgres") == ["18.6"]


def test_a_login_goes_to_no_other_host_than_the_registry(serve: Callable[..., str]) -> None:
    # A connection to port 1 would fail.
    host = serve("basic", ["18.5", "18.6", "18.7"], password="right", login="right", links="http://127.0.0.1:1")
    assert registry.tags(f"{host}/ours/postgres") == ["18.5", "18.6", "18.7"]


def test_a_netrc_file_does_not_replace_the_login_of_docker(
    serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login other password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    host = serve("bearer", ["18.6"], password="right", login="right")
    assert registry.tags(f"{host}/ours/postgres") == ["18.6"]
    assert registry.tags(f"{serve('bearer', ['18.7'])}/ours/postgres") == ["18.7"]


@pytest.mark.parametrize(
    ("repository", "variables", "words"),
    [
        ("registry.example.com/x", {"REQUESTS_CA_BUNDLE": "/no/such/file.pem"}, "/no/such/file.pem"),
        ("https://registry.example.com/x", {}, "cannot contain a scheme"),
    ],
)
def test_whatever_keeps_a_registry_from_being_asked_is_an_error_of_that_registry(
    repository: str, variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RegistryError, match=words):
        registry.tags(repository)


def test_the_names_of_docker_hub_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(_session: object, url: str, _registry: str) -> SimpleNamespace:
        asked.append(url)
        return SimpleNamespace(json=lambda: {"tags": []}, links={})

    monkeypatch.setattr(registry, "_get", get)
    for repository in ("docker.io/library/postgres", "postgres", "quay.io/org/image"):
        registry.tags(repository)
    hub = "https://registry-1.docker.io/v2/library/postgres/tags/list?n=1000"
    assert asked == [hub, hub, "https://quay.io/v2/org/image/tags/list?n=1000"]


def wheel(
    folder: Path,
    version: str,
    *,
    migrations: tuple[str, ...] = (),
    requires: tuple[str, ...] = (),
    name: str = "mlflow",
) -> Path:
    """Write a wheel of MLflow, or of a companion, with these migrations and requirements."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for migration in migrations:
            archive.writestr(f"mlflow/store/db_migrations/versions/{migration}.py", "")
        archive.writestr(f"mlflow/server/auth/db/migrations/versions/user_{version}.py", "")
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines))
    return path


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that pins MLflow 3.18.0, and has Flask 3.1 in the image."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / release.PIN).write_text("mlflow==3.18.0\n")
    (tmp_path / release.LOCK).write_text("# generated\n#    make lock\nmlflow==3.18.0 \\\n    --hash=sha256:00\n")
    (tmp_path / release.REQUIREMENTS).write_text("flask==3.1.2 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def offer(monkeypatch: pytest.MonkeyPatch, *wheels: Path) -> None:
    """Let the package index have these releases, the newest last."""
    releases = [(path.name.partition("-")[0], release.read(path)) for path in wheels]

    def find(requirement: str) -> release.Release:
        wanted = Requirement(requirement)
        kept = [
            one
            for name, one in releases
            if name == wanted.name.replace("-", "_") and wanted.specifier.contains(one.version)
        ]
        if not kept:
            raise PackageIndexError(f"No matching distribution found for {requirement}")
        return kept[-1]

    monkeypatch.setattr(release, "release", find)


class Pins:
    """A stack that runs one image, and remembers what is written."""

    name = "prod"
    path = Path("Pulumi.prod.yaml")

    def __init__(
        self, host: str = "127.0.0.1:1", tag: str = "18.6", digest: str = "none", key: str = "postgres"
    ) -> None:
        self.images = ImagesSettings.model_validate({key: {"ref": f"{host}/ours/postgres:{tag}", "digest": digest}})
        self.values = {"mlflow:images": {key: {"digest": digest}}} if digest != "none" else {}
        self.settings = SimpleNamespace(
            images=self.images,
            pulled_images=[self.images.postgres, self.images.python],
            route=SimpleNamespace(by_mlflow=False),
        )
        if key == "postgres":
            self.settings.pulled_images.pop()
        else:
            self.settings.pulled_images.pop(0)
        self.written: dict[str, object] = {}
        self.daemon = SimpleNamespace(api=self)

    def inspect_distribution(self, ref: str) -> dict[str, dict[str, str]]:
        if "refused" in ref:
            raise APIError("x", explanation="denied")
        return {"Descriptor": {"digest": NEW_DIGEST}}

    def set(self, section: str, **values: object) -> None:
        assert section == "images"
        self.written |= values


def upgraded(pins: Pins) -> None:
    """Run the command."""
    stack: Any = pins
    upgrade.upgrade(stack)


def test_a_newer_mlflow_is_proposed_with_its_migrations_and_written_with_the_hash_of_its_wheel(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = wheel(tmp_path, "3.19.0", migrations=("a", "b", "c"), requires=("flask<4", "scipy", "x; extra == 'y'"))
    offer(monkeypatch, wheel(tmp_path, "3.18.0", migrations=("a",)), new, wheel(tmp_path, "4.0.0"))
    monkeypatch.setenv("YES", "1")
    upgraded(Pins())
    said = capsys.readouterr()
    assert "mlflow  3.18.0  3.19.0  the MLflow image is built again; 2 migrations of the database" in said.out
    assert "MLflow 4.0.0 is another major version, and not proposed" in said.err
    assert "MLflow 3.19.0 has new requirements: scipy. If the build of the image fails" in said.err
    assert "postgres: 127.0.0.1:1 does not answer: no connection" in said.err
    assert (checkout / release.PIN).read_text() == "mlflow==3.19.0\n"
    hashed = release.read(new).sha256
    expected = f"# generated\n#    make lock\nmlflow==3.19.0 \\\n    --hash=sha256:{hashed}\n"
    assert (checkout / release.LOCK).read_text() == expected


def test_a_newer_mlflow_that_refuses_a_package_of_the_image_is_named_and_not_written(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"), wheel(tmp_path, "3.19.0", requires=("Flask>=3.2",)))
    monkeypatch.setenv("YES", "1")
    upgraded(Pins())
    said = capsys.readouterr().err
    assert "it needs Flask>=3.2, and mlflow/requirements.txt has 3.1.2" in said
    assert (checkout / release.PIN).read_text() == "mlflow==3.18.0\n"


@pytest.mark.parametrize(
    ("companion", "words"),
    [
        (("flask>=3.2",), "it needs flask>=3.2, and mlflow/requirements.txt has 3.1.2"),
        (None, "the package index does not have mlflow-skinny==3.19.0, so that it is unknown whether"),
    ],
)
def test_the_requirements_of_the_companions_of_mlflow_count(
    checkout: Path,
    companion: tuple[str, ...] | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wheels = [wheel(tmp_path, "3.18.0"), wheel(tmp_path, "3.19.0", requires=("mlflow-skinny==3.19.0",))]
    if companion:
        wheels.append(wheel(tmp_path, "3.19.0", requires=companion, name="mlflow_skinny"))
    offer(monkeypatch, *wheels)
    monkeypatch.setenv("YES", "1")
    upgraded(Pins())
    assert words in capsys.readouterr().err
    assert (checkout / release.PIN).read_text() == f"mlflow=={'3.18.0' if companion else '3.19.0'}\n"


@pytest.mark.usefixtures("checkout")
def test_an_explicit_digest_of_none_stays(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"))
    monkeypatch.setenv("YES", "1")
    stack = Pins(serve("nothing", ["18.7"]))
    stack.values = {"mlflow:images": {"postgres": {"digest": "none"}}}
    upgraded(stack)
    assert stack.written["postgres"] == {"ref": stack.images.postgres.ref.replace("18.6", "18.7"), "digest": "none"}


@pytest.mark.usefixtures("checkout")
def test_a_newer_image_is_written_with_its_digest_if_the_old_one_has_one(
    tmp_path: Path,
    serve: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"))
    monkeypatch.setenv("YES", "1")
    host = serve("nothing", ["18.6", "18.7", "19.1"])
    without, pinned = Pins(host), Pins(host, digest=OLD_DIGEST)
    upgraded(without)
    assert without.written == {"postgres": {"ref": f"{host}/ours/postgres:18.7"}}
    said = capsys.readouterr()
    assert "postgres  18.6  18.7   Postgres restarts, and no request succeeds meanwhile" in said.out
    assert "make upgrade-postgres STACK=prod TO=19" in said.err
    assert "to deploy, type: make up STACK=prod" in said.out
    upgraded(pinned)
    assert pinned.written == {"postgres": {"ref": f"{host}/ours/postgres:18.7", "digest": NEW_DIGEST}}


@pytest.mark.usefixtures("checkout")
def test_a_tag_with_a_new_digest_is_proposed_and_python_keeps_its_version(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"))
    monkeypatch.setenv("YES", "1")
    host = serve("nothing", ["3.13-slim", "3.14-slim"])
    moved, same = (Pins(host, "3.13-slim", digest, "python") for digest in (OLD_DIGEST, NEW_DIGEST))
    upgraded(moved)
    assert moved.written == {"python": {"ref": f"{host}/ours/postgres:3.13-slim", "digest": NEW_DIGEST}}
    upgraded(same)
    assert same.written == {}
    assert "no newer version was found of: mlflow, python" in capsys.readouterr().out


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("variable", ["DRY_RUN", None])
def test_nothing_is_written_without_approval(
    tmp_path: Path,
    serve: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str | None,
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"))
    if variable:
        monkeypatch.setenv(variable, "1")
        monkeypatch.setenv("YES", "1")
    stack = Pins(serve("nothing", ["18.7"]))
    upgraded(stack)
    assert stack.written == {}
    assert (
        "nothing was changed; to write these versions, type: make upgrade STACK=prod YES=1" in capsys.readouterr().err
    )


@pytest.mark.usefixtures("checkout")
def test_one_version_can_be_named(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch)
    stack = Pins(serve("nothing", ["18.7"]))
    monkeypatch.setenv("SERVICE", "postgres")
    upgraded(stack)
    assert "type: make upgrade STACK=prod YES=1 SERVICE=postgres\n" in capsys.readouterr().err
    monkeypatch.setenv("YES", "1")
    upgraded(stack)
    assert "postgres" in stack.written
    monkeypatch.setenv("SERVICE", "traefik")
    with pytest.raises(
        StopError, match=r"SERVICE=traefik: prod has nothing of this name to look up \(it has: mlflow, postgres\)"
    ):
        upgraded(stack)


@pytest.mark.usefixtures("checkout")
def test_an_error_is_reported_if_nothing_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch)
    with pytest.raises(StopError, match="nothing could be looked up: mlflow, postgres"):
        upgraded(Pins())
    assert "mlflow: the package index does not tell: No matching distribution found" in capsys.readouterr().err


@pytest.mark.usefixtures("checkout")
def test_an_image_whose_digest_docker_cannot_look_up_is_not_written(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, wheel(tmp_path, "3.18.0"))
    monkeypatch.setenv("YES", "1")
    stack = Pins(serve("nothing", ["18.7-refused"]), "18.6-refused", OLD_DIGEST)
    upgraded(stack)
    assert stack.written == {}
    assert "Docker did not get the digest of" in capsys.readouterr().err
