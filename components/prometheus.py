"""The configuration of the bundled Prometheus, and its alerts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.internal_tls import AUTHORITY
from components.scrape import Target, scrape_config
from runtime.workload import CONFIG, SECRETS

ASSETS = Path(__file__).parent.parent / "assets" / "monitoring"
RUNBOOKS = "docs/operations/alerts.md"


def prometheus_config(targets: Sequence[Target], stack: str, alertmanager: Target) -> dict[str, Any]:
    """Return Prometheus' configuration."""
    trusted = {"ca_file": AUTHORITY}
    receiver: dict[str, Any] = {"static_configs": [{"targets": [alertmanager.address]}]}
    if alertmanager.tls:
        receiver |= {"scheme": "https", "tls_config": trusted}
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s", "external_labels": {"stack": stack}},
        "rule_files": [f"{CONFIG}/alerts.yml"],
        "alerting": {"alertmanagers": [receiver]},
        "scrape_configs": [
            scrape_config(target, stack, {"file": f"{SECRETS}/{target.job}"}, trusted) for target in targets
        ],
    }


def alert_rules(runbooks: str | None, *, tasks: int | None = None, stack: str = "") -> str:
    """Return the alert rules, each with a link to its page: at the URL `runbooks`, or else a path in the checkout.

    On a cluster, `tasks` is the number of replicas. A lost task leaves no trace in Docker's DNS, so a rule records it.
    """
    rules = (ASSETS / "alerts.yml").read_text()
    rules = rules.replace(f"runbook_url: {RUNBOOKS}#", f"runbook_url: {runbooks or RUNBOOKS}#")
    if tasks is None:
        return rules
    record = {"record": "mlflow_replicas", "expr": f"vector({tasks})", "labels": {"stack": stack}}
    return f"{rules}\n  - name: cluster\n    rules:\n      - {json.dumps(record)}\n"
