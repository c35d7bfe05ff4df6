"""Test the plan as Markdown, from the events of the engine."""

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from operations.common.console import StopError
from operations.deployment import engine_for
from operations.deployment.copy_preview import PLACEHOLDER_SECRET, without_secrets
from operations.engine.change import MAX_UNFOLDED_ROWS, UNKNOWN
from operations.engine.plan import MAX_PLAN_CHARACTERS, Plan

CONTAINER = "docker:index/container:Container"
DONE = {"summaryEvent": {"result": "succeeded"}}


def step(
    op: str,
    name: str,
    kind: str = CONTAINER,
    *,
    role: str = "service",
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
    paths: tuple[str, ...] = (),
) -> dict[str, Any]:
    labels = {"name": f"mlflow-dev-{name}", "labels": [{"label": "mlflow.role", "value": role}]}
    return {
        "resourcePreEvent": {
            "metadata": {
                "op": op,
                "type": kind,
                "urn": f"urn:pulumi:dev::mlflow::x::{name}",
                "old": {"inputs": labels | dict(old or {})} if op != "create" else None,
                "new": {"inputs": labels | dict(new or {})} if op != "delete" else None,
                "detailedDiff": {path: {"diffKind": "update"} for path in paths},
            }
        }
    }


def plan(*events: Mapping[str, Any]) -> Plan:
    return Plan.read("dev", [json.dumps(event) for event in events])


def test_an_empty_plan_is_one_line() -> None:
    made = plan(step("same", "server"), step("same", "x", "mlflow:components:Mlflow"), DONE)
    assert made.empty
    assert "No changes. 1 resources unchanged." in made.markdown()


def test_a_replaced_service_restarts_and_a_changed_one_does_not() -> None:
    replaced = plan(
        step("delete-replaced", "server"), step("replace", "server"), step("create-replacement", "server"), DONE
    )
    assert [change.verb for change in replaced.changes] == ["replace"]
    assert "> **Restarts**: `server`" in replaced.markdown()
    assert "because a dependency changes" in replaced.markdown()
    assert "one after another" not in replaced.markdown()
    changed = plan(step("update", "server", old={"memory": 1}, new={"memory": 2}, paths=("memory",)), DONE)
    assert "Restarts" not in changed.markdown()
    assert "| change | service | `server` | `memory` `1` → `2` |" in changed.markdown()


def test_a_plan_says_that_replicas_restart_one_after_another() -> None:
    replaced = plan(step("replace", "server"), step("replace", "server-2"), step("replace", "postgres"), DONE)
    assert "> **Restarts**: `postgres`, `server`, `server-2`" in replaced.markdown()
    assert "docs/operations/replicas.md#what-a-change-does): `server`, `server-2`" in replaced.markdown()


SERVICE = "docker:index/service:Service"


def test_a_changed_service_of_a_cluster_says_which_property_and_that_its_tasks_are_replaced_in_turn() -> None:
    old = {"taskSpec": {"containerSpec": {"env": {"A": "1"}, "image": "m:1"}}, "mode": {"replicated": {"replicas": 1}}}
    new = {"taskSpec": {"containerSpec": {"env": {"A": "2"}, "image": "m:2"}}, "mode": {"replicated": {"replicas": 3}}}
    paths = (
        "taskSpec.containerSpec.env.A",
        "taskSpec.containerSpec.image",
        "mode.replicated.replicas",
        "labels[0]",
        "labels[2]",
    )
    told = plan(step("update", "server", SERVICE, old=old, new=new, paths=paths), DONE).markdown()
    assert "`A` `1` → `2`<br>`image` `m:1` → `m:2`<br>`replicas` `1` → `3`<br>`labels`" in told
    assert "Its tasks are replaced one after another" in told
    assert "Restarts" not in told


def test_a_move_to_a_cluster_says_that_the_stack_is_down_meanwhile() -> None:
    moved = plan(step("delete", "server"), step("delete", "server-2"), step("create", "server", SERVICE), DONE)
    told = moved.markdown()
    assert "**Moves between containers and a Swarm cluster**" in told
    assert "Stops permanently" not in told, "it does not stop permanently: it moves"
    back = plan(step("delete", "server", SERVICE), step("create", "server-2"), DONE).markdown()
    assert "**Moves between" in back
    assert "**Moves between" not in plan(step("create", "server", SERVICE), step("create", "postgres"), DONE).markdown()


def test_data_that_leaves_the_stack_is_listed_first() -> None:
    made = plan(step("delete", "postgres-18-data", "docker:index/volume:Volume"), step("delete", "server"), DONE)
    said = made.markdown()
    assert "> **Data volumes leave the stack** (they are kept on the host): `mlflow-dev-postgres-18-data`" in said
    assert "> **Stops permanently**: `server`" in said


def test_a_changed_list_shows_removed_and_added_items() -> None:
    made = plan(
        step("replace", "server", old={"envs": ["A=1", "B=2"]}, new={"envs": ["B=2", "A=3"]}, paths=("envs[0]",))
    )
    assert "`envs` - `A=1` + `A=3`" in made.markdown()


def test_a_changed_file_is_shown_by_name_without_its_content() -> None:
    uploads = [{"file": "/run/secrets/a", "content": "old"}, {"file": "/run/secrets/b", "content": "old"}]
    new = [uploads[0], uploads[1] | {"content": "hunter2"}]
    made = plan(step("replace", "x", old={"uploads": uploads}, new={"uploads": new}, paths=("uploads[1].content",)))
    assert "| `uploads` `b` |" in made.markdown()
    assert "hunter2" not in made.markdown()


def test_removed_files_are_named_and_a_secret_list_is_accepted() -> None:
    old = [{"file": "/run/secrets/a"}, {"file": "/run/secrets/b"}]
    made = plan(step("replace", "x", old={"uploads": old}, new={"uploads": old[:1]}, paths=("uploads[1]",)))
    assert "| `uploads` - `b` |" in made.markdown()
    hidden = plan(step("replace", "x", old={"uploads": "[secret]"}, new={"uploads": "[secret]"}, paths=("uploads[1]",)))
    assert "| `uploads` |" in hidden.markdown()


def test_a_retained_resource_is_shown_as_let_go() -> None:
    event = step("delete", "history", "docker:index/volume:Volume")
    event["resourcePreEvent"]["metadata"]["old"]["retainOnDelete"] = True
    made = plan(event, step("delete", "egress", "docker:index/network:Network"), DONE)
    assert "| forget | volume | `history` |" in made.markdown()
    assert "1 to delete, 1 to forget" in made.markdown()
    # A network that is deleted for good is not reported as interrupted.
    assert "interruption" not in made.markdown()


def test_a_new_network_is_not_shown_by_its_id() -> None:
    theirs = {"__defaults": [], "name": "a" * 64, "aliases": [], "gwPriority": 0, "ipv4Address": ""}
    new = [{"__defaults": [], "name": "a" * 64}, {"__defaults": [], "name": UNKNOWN}]
    key = "networksAdvanced"
    made = plan(step("replace", "x", old={key: [theirs]}, new={key: new}, paths=(f"{key}[1]",)))
    assert f"`{key}` + `known after deployment` |" in made.markdown()


def test_an_unknown_value_is_shown_as_a_new_one() -> None:
    made = plan(step("replace", "x", old={"image": "sha256:" + "a" * 64}, new={"image": UNKNOWN}, paths=("image",)))
    assert "`image` `aaaaaaaaaaaa` → `known after deployment`" in made.markdown()


def test_a_value_is_escaped_and_shortened_in_its_table_cell() -> None:
    made = plan(step("update", "x", old={"user": "a|b`c\nd"}, new={"user": "x" * 500}, paths=("user",)))
    row = next(line for line in made.markdown().splitlines() if line.startswith("| change"))
    assert "`a\\|b'c d`" in row
    assert "x" * 81 not in row


def test_a_policy_violation_is_shown_with_its_rule() -> None:
    violation = {
        "resourceUrn": "a::server",
        "policyName": "hardened",
        "message": "What it says.\nreadOnly: must be true\n",
    }
    made = plan({"policyEvent": violation}, step("create", "server"), {"summaryEvent": {"result": "failed"}})
    assert not made.complete
    assert "- `hardened`, server: readOnly: must be true" in made.markdown()


def test_the_plan_says_that_the_rules_hold_only_when_they_were_checked() -> None:
    asked = {"summaryEvent": {"result": "succeeded", "PolicyPacks": {"mlflow-on-docker": "0.0.1"}}}
    assert "All policies in `policy/` pass." in plan(asked).markdown()
    assert "pass" not in plan(DONE).markdown()


def test_a_failed_plan_shows_its_errors_without_engine_noise() -> None:
    said = [
        {"severity": "error", "message": "<{%fg 1%}>no such setting<{%reset%}>\n"},
        {"severity": "error", "message": "an unhandled error: program exited with non-zero exit code: 1"},
        {"severity": "error", "message": "preview failed"},
        {"severity": "debug", "message": "a secret"},
    ]
    made = Plan.read("dev", [*(json.dumps({"diagnosticEvent": one}) for one in said), "panic: no JSON"])
    assert made.errors == ["no such setting", "panic: no JSON"]
    assert not made.empty
    assert "**The plan failed:**" in made.markdown()


def test_a_long_plan_is_folded_and_fits_a_comment() -> None:
    few = plan(*(step("create", f"x{number}") for number in range(MAX_UNFOLDED_ROWS)), DONE).markdown()
    many = plan(*(step("create", f"x{number}") for number in range(MAX_UNFOLDED_ROWS + 1)), DONE).markdown()
    assert "<details>" not in few
    assert f"<details><summary>All {MAX_UNFOLDED_ROWS + 1} changes</summary>" in many
    huge = plan(*(step("create", "x" * 100 + str(number)) for number in range(1000)), DONE).markdown()
    assert len(huge) <= MAX_PLAN_CHARACTERS
    # It is cut between two rows and the fold is closed, because another plan may follow in the comment.
    assert re.search(r"\n\| \| \| and \d+ more \| \|\n\n</details>\n$", huge)


def test_a_preview_copy_has_all_settings_and_no_secret() -> None:
    secret = {"secure": "v1:abc"}
    document = {
        "encryptionsalt": "x",
        "secretsprovider": "awskms://x",
        "config": {
            "mlflow:hostname": "a.example.com",
            "mlflow:postgresPassword": secret,
            "mlflow:tlsKey": secret,
            "mlflow:server": {"port": 5000, "x": [secret]},
        },
    }
    assert without_secrets(document) == {
        "config": {
            "mlflow:hostname": "a.example.com",
            "mlflow:tlsKey": PLACEHOLDER_SECRET,
            "mlflow:server": {"port": 5000, "x": [PLACEHOLDER_SECRET]},
        }
    }


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        (
            ["mlflow:hostname: is missing"],
            "the plan failed, see above\n  fix Pulumi.team.yaml, then type the same again",
        ),
        (
            [],
            "without a terminal for input and output, this needs your approval\n"
            "  to deploy team, type: make up STACK=team YES=1",
        ),
    ],
    ids=["a plan that fails", "a plan"],
)
def test_without_a_terminal_only_a_plan_that_does_not_fail_asks_for_approval(
    monkeypatch: pytest.MonkeyPatch, errors: list[str], words: str
) -> None:
    monkeypatch.delenv("YES", raising=False)
    monkeypatch.setattr(engine_for, "pulumi_can_ask", lambda: False)
    plan = SimpleNamespace(errors=errors, markdown=lambda: "the plan")
    stack: Any = SimpleNamespace(name="team", path=SimpleNamespace(name="Pulumi.team.yaml"))
    engine: Any = SimpleNamespace(plan=lambda: plan)
    with pytest.raises(StopError) as caught:
        engine_for.approval(stack, "deploy", engine)
    assert str(caught.value) == f"nothing was changed: {words}"
