"""Test the workflows by running their commands, with the real engine and a shared backend, and their comments."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stack.deployment import Deployment, free_port
from tests.stack.workflows import Github, Runner, bare_environment, github

pytestmark = [pytest.mark.engine, pytest.mark.long]
Changes = dict[str, tuple[str, str]]
SETTINGS = "Pulumi.<stack>.yaml"
MARK = "<!-- mlflow: plans -->"


@dataclass
class Team:
    """A deployed stack, its repository, and the shared backend."""

    deployment: Deployment
    github: Github
    folder: Path
    runs: int = 0

    def run(
        self, workflow: str, changes: Changes | None = None, *, fork: bool = False, configured: bool = True
    ) -> Runner:
        """Run a workflow on the deployed stack, with `changes` to its files: file to old and new text."""
        self.runs += 1
        repository = self.folder / f"repository-{self.runs}"
        shutil.copytree(self.deployment.checkout, repository, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
        for name, (old, new) in (changes or {}).items():
            path = repository / (self.deployment.file.name if name == SETTINGS else name)
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))
        _commit(repository)
        passphrase = (
            self.deployment.folder / "config" / "pulumi-mlflow" / f"{self.deployment.stack}.passphrase"
        ).read_text()
        secrets = {} if fork else {"PULUMI_CONFIG_PASSPHRASE": passphrase.strip()}
        backend = {} if fork or not configured else {"PULUMI_BACKEND_URL": (self.deployment.folder / "state").as_uri()}
        whose = "stranger/mlflow" if fork else "team/mlflow"
        runner = Runner(
            self.folder / f"run-{self.runs}",
            repository,
            {
                "github": {
                    "repository": "team/mlflow",
                    "ref": "refs/heads/main",
                    "token": "a-token",
                    "event": {"pull_request": {"number": 7, "head": {"repo": {"full_name": whose}}}},
                },
                "vars": backend,
                "secrets": secrets,
            },
            bare_environment(
                GITHUB_API_URL=self.github.url,
                GITHUB_REPOSITORY="team/mlflow",
                XDG_STATE_HOME=str(self.folder / f"home-{self.runs}"),
                XDG_CONFIG_HOME=str(self.folder / f"home-{self.runs}"),
                # Previews must not need the Docker daemon; the other workflows run on its host.
                DOCKER_HOST="tcp://127.0.0.1:1" if workflow == "preview.yml" else "unix:///var/run/docker.sock",
            ),
        )
        runner.run(workflow, self.deployment.stack)
        return runner


def _commit(repository: Path) -> None:
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    deployment = Deployment(folder, "dev")
    deployment.set("server.port", free_port())
    deployment.set("protectData", "true")
    deployment.use("seaweedfs")
    # Images that are built here need no digest, so the policy is the same as for prod.
    deployment.set("images.source", "packages")
    with github() as server:
        try:
            deployment.make("up")
            yield Team(deployment, server, folder)
        finally:
            deployment.remove()


def only_comment(team: Team) -> str:
    assert len(team.github.comments) == 1
    body: str = team.github.comments[0]["body"]
    assert body.startswith(MARK)
    return body


def test_an_empty_plan_is_commented_and_the_comment_is_updated(team: Team) -> None:
    # A comment of a person with the same mark must not be changed.
    team.github.comments[:] = [{"id": 1, "body": f"{MARK} mine", "user": {"type": "User"}}]
    runner = team.run("preview.yml")
    assert runner.results == {"copy": "success", "plan": "success", "comment": "success"}, runner.said
    assert f"### Plan of `{team.deployment.stack}`" in team.github.comments[1]["body"]
    assert "No changes. " in team.github.comments[1]["body"]
    assert team.github.comments.pop(0)["body"] == f"{MARK} mine"
    team.github.comments[0]["id"] = 1


def test_a_harmless_change_restarts_nothing(team: Team) -> None:
    team.github.comments.clear()
    runner = team.run("preview.yml", {SETTINGS: ("workers: 2\n    memoryMb: 2560", "workers: 2\n    memoryMb: 2688")})
    assert runner.results["plan"] == "success", runner.said
    said = only_comment(team)
    assert "**1 to change**" in said
    assert "| change | service | `server` | `memory` `2560` → `2688`<br>" in said
    assert "Restarts" not in said


def test_a_replacement_names_restarts_and_updates_the_comment(team: Team) -> None:
    team.github.comments.clear()
    team.run("preview.yml")
    runner = team.run("preview.yml", {SETTINGS: ("workers: 2", "workers: 1")})
    assert runner.results["comment"] == "success", runner.said
    said = only_comment(team)
    assert "**1 to replace**" in said
    assert "> **Restarts**: `server`" in said
    assert "`MLFLOW_WORKERS=2` + `MLFLOW_WORKERS=1`" in said


def test_a_policy_violation_fails_the_plan_and_names_the_rule(team: Team) -> None:
    team.github.comments.clear()
    runner = team.run("preview.yml", {"runtime/service.py": ("read_only=True,", "read_only=False,")})
    assert runner.results["plan"] == "failure"
    assert runner.results["comment"] == "success"
    said = only_comment(team)
    assert "**Refused by the policies in `policy/`:**" in said
    assert "- `hardened`, server: readOnly: must be true" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"__main__.py": ("settings = load_settings()", "settings = load_setings()")},
            "NameError: name 'load_setings'",
        ),
        ({SETTINGS: ("workers: 2", "workers: many")}, "mlflow:server.workers"),
    ],
    ids=["program", "settings"],
)
def test_a_broken_program_fails_the_plan_and_shows_the_reason(team: Team, change: Changes, words: str) -> None:
    team.github.comments.clear()
    runner = team.run("preview.yml", change)
    assert runner.results == {"copy": "failure", "plan": "failure", "comment": "success"}
    said = only_comment(team)
    assert "**The plan failed:**" in said
    assert words in said
    assert words in runner.summaries["copy"]


def test_a_fork_gets_the_plan_of_a_copy_and_no_comment(team: Team) -> None:
    team.github.comments.clear()
    runner = team.run("preview.yml", {SETTINGS: ("workers: 2", "workers: 1")}, fork=True)
    assert runner.results == {"copy": "success", "plan": "skipped", "comment": "skipped"}, runner.said
    assert "without its secrets and its state" in runner.summaries["copy"]
    assert "to create**; 0 unchanged" in runner.summaries["copy"]
    assert team.github.comments == []


def test_without_a_shared_backend_only_a_copy_is_planned(team: Team) -> None:
    runner = team.run("preview.yml", configured=False)
    assert runner.results == {"copy": "success", "plan": "skipped", "comment": "skipped"}, runner.said


def test_no_secret_is_in_the_output_of_a_workflow(team: Team) -> None:
    runner = team.run("preview.yml", {SETTINGS: ("workers: 2", "workers: 1")})
    said = runner.said + "".join(runner.summaries.values()) + "".join(one["body"] for one in team.github.comments)
    for key, value in team.deployment.credentials().items():
        assert value not in said, key


def test_drift_opens_an_issue_that_is_closed_once_fixed(team: Team) -> None:
    runner = team.run("drift.yml")
    assert runner.results == {"drift": "success", "tell": "success"}, runner.said
    assert team.github.issues == []
    server = team.deployment.name("server")
    team.deployment.api.update_container(server, mem_limit="1500m", memswap_limit="1500m")
    for _ in range(2):
        runner = team.run("drift.yml")
        assert runner.results == {"drift": "failure", "tell": "success"}
    assert [one["title"] for one in team.github.issues] == [f"{team.deployment.stack} has drifted"]
    assert "`memory` `1500` → `2560`" in team.github.issues[0]["body"]
    runner = team.run("deploy.yml")
    assert runner.results == {"staging": "success"}, runner.said
    # An unknown drift neither opens nor closes an issue.
    unknown = team.run("drift.yml", {SETTINGS: ("workers: 2", "workers: many")})
    assert unknown.results == {"drift": "failure", "tell": "success"}
    assert [one["state"] for one in team.github.issues] == ["open"]
    team.run("drift.yml")
    assert [one["state"] for one in team.github.issues] == ["closed"]


def test_a_merge_is_deployed_and_a_broken_one_is_not(team: Team) -> None:
    before = team.deployment.inspect("server")["Id"]
    runner = team.run("deploy.yml", {SETTINGS: ("workers: 2", "workers: 1")})
    assert runner.results == {"staging": "success"}, runner.said
    assert "> **Restarts**: `server`" in runner.summaries["staging"]
    assert team.deployment.inspect("server")["Id"] != before
    back = team.run("deploy.yml")
    assert back.results == {"staging": "success"}, back.said
    unmade = team.run("deploy.yml", {SETTINGS: ("workers: 2", "workers: many")})
    assert unmade.results == {"staging": "failure"}
    assert "staging, Plan: exit 2" in unmade.said
    assert "staging, Deploy:" not in unmade.said
