"""Test the upgrade of MLflow over a live stack: an image with an old MLflow serves, then `make up` with this one's."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from settings.images import ImagesSettings
from tests.stack.deployment import Deployment, free_port
from tests.stack.old import NEEDS, PINS, OldServer, told

pytestmark = pytest.mark.long
FILL = ("20", "100000", "2000")
DOCKERFILE = """
ARG BUILDER
ARG SERVER
FROM ${BUILDER} AS old
COPY packages.txt /
RUN python -m venv /opt/old && /opt/old/bin/pip install -q --only-binary :all: -r /packages.txt
FROM ${SERVER}
USER 0
COPY --from=old /opt/old /opt/old
COPY create.py /opt/old/
ARG COMMAND
RUN sed -i "s#exec python /opt/mlflow-stack/serve.py\\$#exec ${COMMAND}#" /usr/local/bin/docker-entrypoint.sh \\
    && grep -q /opt/old /usr/local/bin/docker-entrypoint.sh \\
    && sed -i 's#commands(\\["upgrade", uri\\].*#os.execv("/opt/old/bin/python", \
            ["/opt/old/bin/python", "/opt/old/create.py", uri])#' \\
        /opt/mlflow-stack/migrate.py \\
    && grep -q /opt/old /opt/mlflow-stack/migrate.py \\
    && /opt/old/bin/python -W ignore -c "from alembic.script import ScriptDirectory as s; \\
        from mlflow.store.db import utils; c = s.from_config(utils._get_alembic_config('sqlite://')); \\
        open('/opt/mlflow/schema-revision', 'w').write(c.get_current_head() + chr(10)); \\
        open('/opt/mlflow/known-revisions', 'w').write(' '.join(r.revision for r in c.walk_revisions()))"
USER 10001:10001
"""
CREATE = """
import sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
# An old `mlflow db upgrade` creates no tables.
SqlAlchemyStore(sys.argv[1], "/tmp")
"""
SERVE = (
    "/opt/old/bin/mlflow server --backend-store-uri $MLFLOW_BACKEND_STORE_URI --artifacts-destination "
    "$MLFLOW_ARTIFACTS_DESTINATION --serve-artifacts --host 0.0.0.0 --port 5000 --workers 2"
)


def old_image(version: str, server: str, builder: str, folder: Path) -> str:
    """Build an image of this stack's contract in which an old MLflow serves and migrates; return its name."""
    name = f"localhost/mlflow-tests-old:{version}"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "create.py").write_text(CREATE)
    (folder / "packages.txt").write_text(
        "\n".join([f"mlflow=={version}", "prometheus-flask-exporter", *NEEDS, *PINS.get(version, ())])
    )
    arguments = {
        "BUILDER": builder,
        "SERVER": server,
        "COMMAND": SERVE,
    }
    options = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    done = subprocess.run(
        ["docker", "build", "-t", name, *options, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return name


@contextmanager
def polled(url: str) -> Iterator[list[float]]:
    """Ask a server four times a second; fill the list with the time of each gap between two answers, in seconds."""
    gaps: list[float] = []
    ended = threading.Event()

    def poll() -> None:
        last = time.monotonic()
        while not ended.wait(0.25):
            try:
                # Without retries, which would lengthen a gap.
                answer = urllib3.request(
                    "GET", f"{url}/api/2.0/mlflow/experiments/search?max_results=1", timeout=2, retries=False
                )
            except urllib3.exceptions.HTTPError:
                continue
            if answer.status == 200:
                if (gap := time.monotonic() - last) > 1:
                    gaps.append(gap)
                last = time.monotonic()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    yield gaps
    ended.set()
    thread.join(30)


@pytest.mark.parametrize("version", ["2.22.1", "3.14.0"])
def test_mlflow_is_upgraded_over_a_live_stack_and_everything_is_equal(version: str, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "stack", "dev")
    deployment.set("server.port", free_port())
    deployment.set("backup.enabled", value=True)
    deployment.use(deployment.any_store)
    try:
        # This one's own image is the base of the old one.
        deployment.make("up")
        server = deployment.inspect("server")["Config"]["Image"]
        deployment.make("destroy", CONFIRM=deployment.stack)
        images = deployment.values.get("mlflow:images", {})
        builder = ImagesSettings.model_validate(images).builder.name
        image = old_image(version, server, builder, tmp_path / "image")
        deployment.set("images", {**images, "mlflow": {"ref": image, "digest": "none"}})
        deployment.make("up")
        old = OldServer(version, tmp_path, [], {}, deployment.values["mlflow:server"]["port"])
        old.client("fill", *FILL)
        before = old.told()
        deployment.set("images", images)
        with polled(deployment.url) as gaps:
            done = deployment.make("up")
            time.sleep(2)
        upgraded(old, before, done.stdout + done.stderr, gaps)
        # And an attempt to go back is refused while the newer server serves.
        deployment.set("images", {**images, "mlflow": {"ref": image, "digest": "none"}})
        since = deployment.inspect("server")["State"]["StartedAt"]
        done = deployment.make("up", ok=False)
        assert "which MLflow" in done.stdout + done.stderr
        assert deployment.inspect("server")["State"]["StartedAt"] == since
    finally:
        deployment.remove()


def upgraded(old: OldServer, before: Any, said: str, gaps: list[float]) -> None:  # noqa: ANN401
    """Compare what old and new clients find, and the printed downtime with the measured one."""
    assert "taking a backup first" in said
    assert old.told() == before
    assert len(before["runs"]) == 22
    new = told(old.url)
    assert {key: new[key] for key in before} == before
    found = re.search(r"the server did not serve for (\d+) s", said)
    assert found, said
    print(f"{old.version}: printed {found[1]} s, measured {gaps}")
    assert max(gaps) - 3 < int(found[1]) < max(gaps) + 3
