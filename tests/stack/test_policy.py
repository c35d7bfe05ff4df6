"""Test the policy on the real engine: the shipped stacks are accepted, every bad program is refused by its rule."""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from policy.rules import CONTAINER, IMAGE, SERVICE
from tests.policy.test_policy import BAD, DIGEST, GOOD, GOOD_SERVICE, PINNED
from tests.stack.deployment import ROOT, Deployment

PROGRAM = """
import json, pathlib, pulumi, pulumi_docker as docker
for number, (kind, props) in enumerate(json.loads(pathlib.Path("bad.json").read_text())):
    getattr(docker, kind)(f"x{number}", **props)
"""
SNAKE = {
    "securityOpts": "security_opts",
    "readOnly": "read_only",
    "memorySwap": "memory_swap",
    "logOpts": "log_opts",
    "destroyGraceSeconds": "destroy_grace_seconds",
    "networkMode": "network_mode",
    "pidMode": "pid_mode",
}


@pytest.mark.engine
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("dev", "staging")), "prod"])
def test_the_policy_accepts_the_shipped_stacks(name: str, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, name, stack=name)
    if name != "dev":
        images = PINNED["mlflow:images"]
        deployment.set("images", {key: images[key] for key in ("postgres", "python")})
    said = deployment.make("preview")
    assert "All policies in `policy/` pass." in said.stdout


@pytest.mark.long
@pytest.mark.engine
def test_a_plan_that_moves_the_artifacts_is_exempt_from_one_rule_only(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "prod", stack="prod")
    seaweedfs = {"ref": "docker.io/chrislusf/seaweedfs:4.48", "digest": DIGEST}
    for key, image in (PINNED["mlflow:images"] | {"seaweedfs": seaweedfs}).items():
        deployment.set(f"images.{key}", image)
    deployment.set("objectStore.kind", "seaweedfs")
    deployment.set("objectStore.copyFrom", "minio")
    assert "All policies in `policy/` pass." in deployment.make("preview").stdout
    deployment.set("images.postgres", {"ref": "docker.io/library/postgres:18.6"})
    refused = deployment.make("preview", ok=False).stdout
    assert "pinned-images" in refused
    assert "protected-data" not in refused


@pytest.mark.engine
def test_a_plan_that_breaks_a_rule_fails(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "prod", stack="prod")
    done = deployment.make("preview", ok=False)
    assert "pinned-images" in done.stdout
    assert "docker.io/library/postgres:18.6 has no digest" in done.stdout
    assert "violates a policy in policy/" in done.stderr


@pytest.mark.engine
def test_every_bad_program_is_refused_by_its_rule(tmp_path: Path) -> None:
    project, state = tmp_path / "project", tmp_path / "state"
    for folder in (project, state):
        folder.mkdir()
    runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": str(ROOT / ".venv")}}
    (project / "Pulumi.yaml").write_text(json.dumps({"name": "mlflow", "runtime": runtime}))
    (project / "__main__.py").write_text(PROGRAM)
    resources: list[tuple[str, dict[str, object]]] = []
    for _, kind, props, _ in BAD:
        wanted = {CONTAINER: GOOD, SERVICE: GOOD_SERVICE}.get(kind, {}) | props
        if kind == SERVICE:
            resources.append(("Service", _all_snake(wanted)))
            continue
        if kind == CONTAINER:
            wanted |= {"name": f"x{len(resources)}"}
        for key in ("volumes", "mounts", "ports", "devices", "healthcheck", "capabilities"):
            # The provider expects snake case in nested dictionaries, too.
            if isinstance(wanted.get(key), list):
                wanted[key] = [{_snake(name): value for name, value in entry.items()} for entry in wanted[key]]
        resources.append((kind.rpartition(":")[2], {_snake(key): value for key, value in wanted.items()}))
    (project / "bad.json").write_text(json.dumps(resources))
    environment = {
        **os.environ,
        "PULUMI_BACKEND_URL": state.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "x",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    init = ["pulumi", "stack", "init", "prod", "--non-interactive"]
    subprocess.run(init, cwd=project, env=environment, check=True, capture_output=True)
    preview = ["pulumi", "preview", "--stack", "prod", "--non-interactive", "--policy-pack", str(ROOT / "policy")]
    done = subprocess.run(preview, cwd=project, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    # Several have the same words. Each of them must be refused.
    for words, number in Counter(words for *_, words in BAD).items():
        assert said.count(words) >= number, f"{words}\n{said}"
    for rule, kind, *_ in BAD:
        assert kind == IMAGE or re.search(rf"\b{re.escape(rule)}(?![\w-])", said), f"{rule}\n{said}"


def _all_snake(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a value with all its keys in snake case, except the names of variables."""
    if isinstance(value, list):
        return [_all_snake(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {_snake(key): entry if key == "env" else _all_snake(entry) for key, entry in value.items()}


def _snake(name: str) -> str:
    return SNAKE.get(name) or "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
