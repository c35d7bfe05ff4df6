"""The smallest old deployment: an SQLite file with one run, and a folder with its artifact."""

import hashlib
import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.stack.edge import Listener

CREATE = """
import os, sys, mlflow
if os.path.exists("/tmp/imported.db"):
    os.remove("/tmp/imported.db")
mlflow.set_tracking_uri("sqlite:////tmp/imported.db")
experiment = mlflow.create_experiment("of a laptop", artifact_location=f"file://{sys.argv[1]}")
with mlflow.start_run(experiment_id=experiment):
    mlflow.log_metric("loss", 0.25)
sys.stdout.buffer.write(open("/tmp/imported.db", "rb").read())
"""
READ = """
import hashlib, sys, mlflow
run = mlflow.MlflowClient().get_run(sys.argv[1])
content = open(mlflow.artifacts.download_artifacts(run.info.artifact_uri + "/model.bin"), "rb").read()
print(run.data.metrics["loss"], hashlib.sha256(content).hexdigest(), end="")
"""
MAP = "/tmp/mlruns=keep"  # noqa: S108 - where the default experiment was
"""`MAP=` for its import."""


@dataclass(frozen=True)
class Laptop:
    """The file for `SOURCE=`, the file of the artifact, and what a client must find."""

    database: Path
    artifact: Path
    run: str

    def require_equal(self, listener: Listener, folder: Path, password: str) -> None:
        """Fail if a client that logs in as `mlflow` does not find the run with its metric and its artifact."""
        script = folder / "read.py"
        script.write_text(READ)
        login = {"MLFLOW_TRACKING_USERNAME": "mlflow", "MLFLOW_TRACKING_PASSWORD": password}
        done = listener.client(str(script), self.run, **login)
        assert done.stdout == f"0.25 {hashlib.sha256(self.artifact.read_bytes()).hexdigest()}", done.stderr


def laptop(folder: Path, server: str, content: bytes | None = None) -> Laptop:
    """Create the deployment in `folder`, with the MLflow in the container `server`."""
    database, artifacts = folder / "mlflow.db", folder / "artifacts"
    command = ("python", "-W", "ignore", "-c", CREATE, str(artifacts))
    database.write_bytes(subprocess.run(["docker", "exec", server, *command], capture_output=True, check=True).stdout)
    with closing(sqlite3.connect(database)) as old:
        run, address = old.execute("SELECT run_uuid, artifact_uri FROM runs").fetchone()
    artifact = Path(urlsplit(address).path) / "model.bin"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(content or os.urandom(100_000))
    return Laptop(database, artifact, run)
