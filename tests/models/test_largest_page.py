"""The largest answer of `search_runs`: an error instead of a killed worker, and never a part without knowing."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "mlflow" / "plugins" / "largest_page.py"


class RefusedError(Exception):
    """Stands for MLflow's exception."""

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - loaded at run time
    """The plugin, with stand-ins for the parts of MLflow's server that the client package lacks."""
    modules: dict[str, dict[str, Any]] = {
        "mlflow.exceptions": {"MlflowException": RefusedError},
        "mlflow.protos.databricks_pb2": {"INVALID_PARAMETER_VALUE": 7},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("largest_page", PATH)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    # This machine may have a limit of its own.
    monkeypatch.setattr(loaded, "LIMITS", ())
    return loaded


class Page(list[int]):
    token: str | None = None


class Runs:
    """A store with so many runs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[Any] = []

    def search_runs(self, _ids: Any, _filter: Any, _view: Any, max_results: Any, _order: Any, _token: Any) -> Page:  # noqa: ANN401
        self.asked.append(max_results)
        page = Page(range(min(self.number, max_results)))
        page.token = "more" if self.number > max_results else None
        return page


def search(plugin: Any, number: int, max_results: int) -> tuple[Page, list[Any]]:  # noqa: ANN401
    store = type("Store", (plugin.LimitedSearch, Runs), {})(number)
    return store.search_runs(["1"], "", 1, max_results), store.asked


@pytest.mark.parametrize(
    ("number", "max_results", "answered"),
    [(20_000, 1_000, 1_000), (20_000, 10_000, 10_000), (9_000, 50_000, 9_000), (10_000, 50_000, 10_000)],
)
def test_an_answer_that_fits_is_returned_whole(
    plugin: Any,  # noqa: ANN401
    number: int,
    max_results: int,
    answered: int,
) -> None:
    assert len(search(plugin, number, max_results)[0]) == answered


def test_more_runs_than_one_answer_may_have_are_an_error_that_says_which_pages_to_request(plugin: Any) -> None:  # noqa: ANN401
    words = r"max_results=50000: more than 10000 runs match.*max_results=10000 and page_token.*mlflow:server.memoryMb"
    with pytest.raises(RefusedError, match=words) as refused:
        search(plugin, 10_001, 50_000)
    assert refused.value.error_code == 7


def test_a_page_that_mlflow_itself_refuses_reaches_mlflow(plugin: Any) -> None:  # noqa: ANN401
    assert search(plugin, 5, 50_001)[1] == [50_001]


@pytest.mark.parametrize(
    ("limit", "runs"),
    [("2684354560", 12_250), ("1073741824", 10_000), ("9017753600", 50_000), ("max", 50_000), (None, 10_000)],
    ids=["the default, 2560 MB", "1024 MB", "8600 MB", "no limit", "no control group"],
)
def test_the_largest_page_follows_the_memory_limit_of_the_container(
    plugin: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str | None,
    runs: int,
) -> None:
    path = tmp_path / "memory.max"
    if limit:
        path.write_text(f"{limit}\n")
    monkeypatch.setattr(plugin, "LIMITS", (str(tmp_path / "missing"), str(path)))
    assert plugin.largest_page() == runs
