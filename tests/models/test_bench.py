"""The table of `make bench`: medians, and by which factor this stack is better."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operations.bench import bench, plain
from operations.bench.bench import table
from operations.common.console import StopError
from operations.deployment import end


def test_the_table_shows_medians_and_a_factor_above_1_where_this_stack_is_better() -> None:
    found = {
        "ready": {"this stack": [5.0, 6.0, 90.0], "plain": [12.0]},
        "get run": {"this stack": [20.0], "plain": [10.0]},
        "upload": {"this stack": [150.0], "plain": [100.0]},
        "download through Traefik": {"this stack": [90.0], "plain": [100.0]},
    }
    assert table(found).splitlines()[2:] == [
        "| ready | 6.0 s | 12.0 s | 2.0 x |",
        "| get run | 20.0 ms | 10.0 ms | 0.5 x |",
        "| upload | 150 MB/s | 100 MB/s | 1.5 x |",
        "| download through Traefik | 90.0 MB/s | 100 MB/s | 0.9 x |",
    ]


@pytest.mark.parametrize("left", [[], ["mlflow-bench-server"]])
def test_a_stack_that_cannot_be_deleted_keeps_its_file_only_if_something_is_left(
    tmp_path: Path, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise StopError("bench is not deployed")

    stack: Any = SimpleNamespace(path=tmp_path / "Pulumi.bench.yaml", daemon=None)
    stack.path.write_text("config: {}\n")
    monkeypatch.setattr(end, "destroy", refused)
    monkeypatch.setattr(bench, "leftovers", lambda _: left)
    monkeypatch.setattr(plain, "remove", lambda _: None)
    with pytest.raises(StopError, match="is not deployed"):
        bench._delete(stack)
    assert stack.path.exists() == bool(left)
