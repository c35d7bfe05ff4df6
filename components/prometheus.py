"""The configuration of the bundled Prometheus, and its alerts."""

import json
from collections.abc import Sequence
from datetime import datetime
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


def alert_rules(
    runbooks: str | None, *, tasks: int | None = None, secrets_due: datetime | None = None, stack: str = ""
) -> str:
    """Return the alert rules, each with a link to its page: at the URL `runbooks`, or else a path in the checkout.

    On a cluster, `tasks` is the number of replicas. A lost task leaves no trace in Docker's DNS, so a rule records it.
    Another one records when the first secret is too old.
    """
    rules = (ASSETS / "alerts.yml").read_text()
    rules = rules.replace(f"runbook_url: {RUNBOOKS}#", f"runbook_url: {runbooks or RUNBOOKS}#")
    facts = {
        "mlflow_replicas": tasks,
        "mlflow_secrets_due_timestamp_seconds": secrets_due and int(secrets_due.timestamp()),
    }
    records = [
        {"record": name, "expr": f"vector({value})", "labels": {"stack": stack}}
        for name, value in facts.items()
        if value is not None
    ]
    if not records:
        return rules
    return f"{rules}\n  - name: settings\n    rules:\n" + "".join(f"      - {json.dumps(one)}\n" for one in records)
