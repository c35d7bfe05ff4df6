"""The image with an old MLflow, which the long tests of an upgrade build from this project's scripts."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.stack.test_mlflow_upgrade import DOCKERFILE

ROOT = Path(__file__).parents[2]
FILES = {
    "/usr/local/bin/docker-entrypoint.sh": ROOT / "mlflow" / "docker-entrypoint.sh",
    "/opt/mlflow-stack/migrate.py": ROOT / "mlflow" / "migrate.py",
}


def test_the_edits_of_the_image_with_an_old_mlflow_find_what_they_replace(tmp_path: Path) -> None:
    """Otherwise that image cannot be built, and only the longest run of the tests would tell."""
    steps = re.search(r"RUN (sed .*?)\s+&& /opt/old/bin/python", DOCKERFILE, re.DOTALL)
    assert steps
    script = steps[1].replace("${COMMAND}", "/opt/old/bin/mlflow server")
    for path, file in FILES.items():
        shutil.copy(file, tmp_path / file.name)
        script = script.replace(path, str(tmp_path / file.name))
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "/opt/old" in (tmp_path / "migrate.py").read_text()
