"""The configuration of the bundled Alertmanager."""

from typing import Any

from runtime.workload import SECRETS
from settings.monitoring import MonitoringSettings
from settings.secrets import MAIL_SECRET, SWITCH_SECRET, WEBHOOK_SECRET


def alertmanager_config(settings: MonitoringSettings) -> dict[str, Any]:
    """Return Alertmanager's configuration: receivers, and which alerts suppress which others as their cause."""
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
                    # Less than two group intervals, or Alertmanager skips every second notification.
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
            # If notifications fail, the dead man's switch must stay silent, too, so that the external service notices.
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
