"""The configuration of the bundled Alertmanager."""

import json
from pathlib import Path
from typing import Any

from runtime.workload import SECRETS
from settings.monitoring import MonitoringSettings
from settings.secrets import MAIL_SECRET, SWITCH_SECRET, WEBHOOK_SECRET

ASSETS = Path(__file__).parent.parent / "assets" / "monitoring"


def alertmanager_config(settings: MonitoringSettings) -> str:
    """Return the file `alertmanager.yml`: the routing of `assets/monitoring`, and the receivers of the settings."""
    people: dict[str, Any] = {"name": "people"}
    if settings.mail:
        mail = settings.mail
        people["email_configs"] = [
            {
                "to": mail.to,
                "from": mail.sender,
                "smarthost": mail.server,
                "send_resolved": True,
                **({"auth_username": mail.user, "auth_password_file": f"{SECRETS}/{MAIL_SECRET}"} if mail.user else {}),
            }
        ]
    if settings.webhook:
        people["webhook_configs"] = [{"url_file": f"{SECRETS}/{WEBHOOK_SECRET}", "send_resolved": True}]
    switch: dict[str, Any] = {"name": "switch"}
    if settings.dead_mans_switch:
        switch["webhook_configs"] = [{"url_file": f"{SECRETS}/{SWITCH_SECRET}", "send_resolved": False}]
    routing = (ASSETS / "alertmanager.yml").read_text()
    # JSON is YAML.
    return routing + "receivers: " + json.dumps([people, switch], indent=2) + "\n"
