"""The configuration of the bundled Alertmanager."""

from typing import Any

from runtime.workload import SECRETS
from settings.monitoring import MonitoringSettings
from settings.secrets import MAIL_SECRET, SWITCH_SECRET, WEBHOOK_SECRET


def alerting(settings: MonitoringSettings) -> dict[str, Any]:
    """Return Alertmanager's configuration: who is told, and of what not, since a worse thing explains it."""
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
    explained = {
        "MlflowDown": "MlflowNotReady|MlflowSlow|MlflowErrors|EdgeDown",
        "DatabaseDown": "MlflowNotReady|MlflowSlow|MlflowErrors|EdgeDown|BackupFailed|DrillFailed",
        "ObjectStoreDown": "MlflowErrors|BackupFailed|DrillFailed",
        "MlflowNotReady": "MlflowSlow|MlflowErrors|EdgeDown",
    }
    return {
        "route": {
            "receiver": "people",
            "group_by": ["stack", "alertname"],
            "group_wait": "10s",
            "group_interval": "1m",
            "repeat_interval": "12h",
            "routes": [
                {
                    "receiver": "switch",
                    "matchers": ['alertname = "Watchdog"'],
                    "group_wait": "0s",
                    "group_interval": "30s",
                    # Less than two of those intervals, or every second one is left out.
                    "repeat_interval": "45s",
                }
            ],
        },
        "receivers": [people, switch],
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname = "{worse}"'],
                "target_matchers": [f'alertname =~ "{others}"'],
                "equal": ["stack"],
            }
            for worse, others in explained.items()
        ]
        + [
            # Whoever misses the switch learns that nobody can be told.
            {
                "source_matchers": ['alertname = "NotificationsFailing"'],
                "target_matchers": ['alertname = "Watchdog"'],
                "equal": ["stack"],
            },
            {
                "source_matchers": ['alertname =~ "MlflowDown|DatabaseDown|ObjectStoreDown|EdgeDown"'],
                "target_matchers": ['alertname = "TargetDown"'],
                "equal": ["stack", "instance"],
            },
        ],
    }
