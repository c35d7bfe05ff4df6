"""Test how `make doctor` reads the configuration of an existing Traefik and judges the answer of the ingress."""

import io
import socket
import tarfile
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker.errors import NotFound

from operations.observe import ingress
from operations.observe.existing_traefik import _check_traefik, seconds, static_configuration
from operations.observe.findings import Findings
from operations.observe.ingress import authentication_problem
from runtime.daemon import Daemon
from settings.parsing import parse_settings


class Api:
    """The API of a Docker daemon, with the files of one container."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    def get_archive(self, _container: str, path: str) -> tuple[list[bytes], dict[str, Any]]:
        if path not in self.files:
            raise NotFound("no such file")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            content = self.files[path].encode()
            entry = tarfile.TarInfo(path.rpartition("/")[2])
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return [packed.getvalue()], {}


class FakeDaemon(Daemon):
    def __init__(self, files: dict[str, str]) -> None:
        super().__init__("unix:///nowhere")
        self.files = files

    @property
    def api(self) -> Any:  # noqa: ANN401
        return Api(self.files)


def a_proxy(*command: str, env: list[str] | None = None) -> dict[str, Any]:
    return {"Id": "x", "Config": {"Entrypoint": ["/entrypoint.sh"], "Cmd": list(command), "Env": env}}


def read(files: dict[str, str], proxy: dict[str, Any]) -> dict[str, str]:
    return static_configuration(cast("Daemon", FakeDaemon(files)), proxy)


YAML = "entryPoints: {websecure: {transport: {respondingTimeouts: {readTimeout: 12h}}}}"
KEY = "entrypoints.websecure.transport.respondingtimeouts.readtimeout"


@pytest.mark.parametrize(
    ("files", "proxy"),
    [
        ({}, a_proxy("traefik", "--entryPoints.websecure.transport.respondingTimeouts.readTimeout=12h")),
        ({}, a_proxy(env=["TRAEFIK_ENTRYPOINTS_WEBSECURE_TRANSPORT_RESPONDINGTIMEOUTS_READTIMEOUT=12h"])),
        # Compose passes on an unset variable without a value.
        ({}, a_proxy(env=["TOKEN", "TRAEFIK_ENTRYPOINTS_WEBSECURE_TRANSPORT_RESPONDINGTIMEOUTS_READTIMEOUT=12h"])),
        ({"/etc/traefik/traefik.yml": YAML}, a_proxy("traefik")),
        (
            {"/conf/t.toml": '[entryPoints.websecure.transport.respondingTimeouts]\nreadTimeout = "12h"\n'},
            a_proxy("--configFile=/conf/t.toml"),
        ),
    ],
    ids=["arguments", "variables", "variables, one without a value", "yaml", "toml with a custom name"],
)
def test_the_read_timeout_is_found_in_every_configuration_source(files: dict[str, str], proxy: dict[str, Any]) -> None:
    assert read(files, proxy)[KEY] == "12h"


GOOD = ("traefik", f"--{KEY}=2h", "--entryPoints.websecure.http.aliasHeadersStrategy=delete")


@pytest.mark.parametrize(
    ("version", "arguments", "problems", "notes"),
    [
        ("3.7.15", GOOD, [], []),
        ("3.3.7", GOOD, ["edge: Traefik 3.3.7 is too old; upgrade to 3.4"], []),
        ("3.6.20", GOOD, [], ["edge: Traefik 3.6.20 lacks security fixes; upgrade to 3.6.21"]),
        ("built by hand", GOOD, [], ["edge: its version is unknown; the minimum is 3.4"]),
        (
            "3.7.15",
            ("traefik", "--entryPoints.web.address=:80", "--entryPoints.tls.address=:443"),
            [],
            [
                "edge: entry point websecure not found in its arguments, variables or /etc/traefik/traefik.yml "
                "(found: tls, web)"
            ],
        ),
        (
            "3.7.15",
            ("traefik", f"--{KEY}=599s", GOOD[2]),
            ["edge: uploads that take longer than 599 s are interrupted\n  set entryPoints.websecure."],
            [],
        ),
        # Traefik's default is a minute, and 0 means no limit.
        ("3.7.15", ("traefik", GOOD[2]), ["edge: uploads that take longer than 60 s are interrupted"], []),
        ("3.7.15", ("traefik", f"--{KEY}=0", GOOD[2]), [], []),
        ("3.7.15", GOOD[:2], [], ["edge: entryPoints.websecure.http.aliasHeadersStrategy is not set to delete"]),
    ],
)
def test_what_is_wrong_with_an_existing_traefik_is_reported(
    version: str, arguments: tuple[str, ...], problems: list[str], notes: list[str]
) -> None:
    daemon = FakeDaemon({})
    daemon.run = lambda *_: (0, f"Version:      {version}\nCodename: x")  # type: ignore[method-assign]
    settings = SimpleNamespace(traefik=SimpleNamespace(entry_point="websecure", network="proxy"))
    stack: Any = SimpleNamespace(name="prod", daemon=daemon, settings=settings)
    found, proxy = Findings([], []), a_proxy(*arguments)
    _check_traefik(stack, found, {**proxy, "Name": "/edge", "NetworkSettings": {"Networks": {}}})
    for said, expected in ((found.problems, problems), (found.notes, notes)):
        assert len(said) == len(expected), said
        for text, beginning in zip(said, expected, strict=True):
            assert text.startswith(beginning)


def test_a_traefik_that_does_not_answer_is_told_from_one_without_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "ROUTED_SECONDS", 0.1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = ingress.Listener("127.0.0.1", unused.getsockname()[1], tls=False)
        assert ingress._wait_for_route(nobody, "m.example.com") is None
    monkeypatch.setattr(ingress, "_status", lambda *_: 404)
    assert ingress._wait_for_route(nobody, "m.example.com") == 404


def test_a_configuration_file_overrides_arguments_and_variables() -> None:
    files = {"/etc/traefik/traefik.yml": "entryPoints: {websecure: {address: ':443'}}"}
    assert read(files, a_proxy(f"--{KEY}=12h", env=[f"TRAEFIK_{KEY.upper().replace('.', '_')}=12h"])) == {
        "entrypoints.websecure.address": ":443"
    }


def test_an_invalid_yaml_file_is_ignored() -> None:
    assert read({"/etc/traefik/traefik.yml": "a: [b"}, a_proxy("--api")) == {"api": "true"}


@pytest.mark.parametrize(
    ("written", "found"), [("60", 60), ("0", 0), ("60s", 60), ("1m30s", 90), ("12h", 43200), ("500ms", 0.5), ("0s", 0)]
)
def test_durations_are_parsed_in_go_notation(written: str, found: float) -> None:
    assert seconds(written) == found


@pytest.mark.parametrize(
    ("authentication", "status", "words"),
    [
        ("singleSignOn", 401, None),
        ("mlflow", 401, None),
        ("anonymous", 200, None),
        ("singleSignOn", 200, "accepts requests without credentials"),
        ("singleSignOn", 302, "redirects clients (HTTP 302), so their logged data is lost"),
        ("password", 404, "Traefik has no route to the server (HTTP 404)"),
        ("password", 503, "Traefik has no route to the server (HTTP 503)"),
        ("anonymous", 401, "a request without credentials gets HTTP 401, expected 200"),
        ("password", 502, "a request without credentials gets HTTP 502, expected 401"),
    ],
)
def test_the_answer_to_a_client_without_credentials_is_checked(
    authentication: str, status: int, words: str | None
) -> None:
    traefik = {"mode": "existing"}
    if authentication == "singleSignOn":
        traefik = {"mode": "existing", "singleSignOn": "a@docker", "middlewares": ["a@docker"]}  # type: ignore[dict-item]
    values = {"hostname": "m.example.com", "authentication": authentication, "traefik": traefik}
    said = authentication_problem(parse_settings(values).route, status, "dev")
    assert said is None if words is None else words in (said or "")
