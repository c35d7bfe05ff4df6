"""The application that uvicorn serves: MLflow's, by shorter ways, and in a replica with the answers of a replica."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

MLFLOW = Path(__file__).parents[2] / "mlflow"


def functions_of_serve() -> dict[str, Any]:
    """Return the functions of serve.py that know uvicorn's command. The module itself needs MLflow's server."""
    source = (MLFLOW / "serve.py").read_text()
    space: dict[str, Any] = {"os": os, "pairwise": pairwise}
    exec(source[source.index("def own(") : source.index("\n\n\nif __name__ ==")], space)  # noqa: S102
    return space


@pytest.mark.parametrize(
    ("command", "application"),
    [
        (
            ["python", "-m", "uvicorn", "--workers", "2", "mlflow.server.fastapi_app:app"],
            "mlflow.server.fastapi_app:app",
        ),
        (
            ["python", "-m", "uvicorn", "--workers", "2", "--factory", "mlflow.server.auth:create_app"],
            "mlflow.server.auth:create_app()",
        ),
    ],
    ids=["without users", "with MLflow's users"],
)
def test_uvicorn_serves_mlflows_application_inside_its_own(
    monkeypatch: pytest.MonkeyPatch, command: list[str], application: str
) -> None:
    monkeypatch.setenv("APPLICATION", "")
    started = functions_of_serve()["own"](command)
    assert started == ["python", "-m", "uvicorn", "--workers", "2", "--factory", "application:create"]
    assert os.environ["APPLICATION"] == application


def test_a_command_that_is_not_uvicorns_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLICATION", "")
    command = ["python", "-m", "mlflow.server.jobs._job_runner"]
    functions = functions_of_serve()
    assert functions["idle"](functions["own"](command)) == command
    assert os.environ["APPLICATION"] == ""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - loaded at run time
    """The plugin, with stand-ins for uvicorn and for the modules that change an application."""
    uvicorn = types.ModuleType("uvicorn.importer")

    def imported(name: str) -> str | Callable[[], str]:
        return name if name.endswith(":app") else lambda: f"made by {name}"

    uvicorn.__dict__["import_from_string"] = imported
    draining, shorter = types.ModuleType("draining"), types.ModuleType("shorter")
    draining.__dict__["answering"] = lambda application: f"draining {application}"
    shortened: list[str] = []
    long: list[str] = []

    def shorten(application: str) -> list[str]:
        shortened.append(application)
        return long

    shorter.__dict__["shorten"] = shorten
    for module in uvicorn, draining, shorter:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("application", MLFLOW / "plugins" / "application.py")
    assert spec
    assert spec.loader
    loaded: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.shortened, loaded.long = shortened, long
    return loaded


@pytest.mark.parametrize(("name", "found"), [("a.b:app", "a.b:app"), ("a.b:create()", "made by a.b:create")])
@pytest.mark.parametrize("drains", [True, False])
def test_the_application_is_the_named_one_or_what_its_factory_returns(
    plugin: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    found: str,
    *,
    drains: bool,
) -> None:
    monkeypatch.setenv("APPLICATION", name)
    monkeypatch.setenv("LEAVE_SECONDS", "5" if drains else "")
    assert plugin.create() == (f"draining {found}" if drains else found)
    assert plugin.shortened == [found]


def test_what_mlflow_has_changed_is_named_in_the_log(
    plugin: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPLICATION", "a.b:app")
    plugin.create()
    assert capsys.readouterr().err == ""
    plugin.long += ["one", "two"]
    plugin.create()
    assert capsys.readouterr().err == "application: requests take longer, because MLflow has changed one, two\n"
