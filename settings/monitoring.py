"""The settings of monitoring and alerting."""

from typing import Literal

from pydantic import Field

from settings.base import Cpus, Email, HostAndPort, HttpUrl, Port, Settings
from settings.secrets import MAIL_SECRET, SWITCH_SECRET, WEBHOOK_SECRET

PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT, POSTGRES_EXPORTER_PORT, BLACKBOX_PORT = 9090, 9093, 3000, 9187, 9115
BUNDLED_MONITORING_ONLY = (
    *("mail", "webhook", "dead_mans_switch", "prometheus_port", "alertmanager_port", "grafana_port"),
    *("retention_days", "retention_gb", "memory_mb", "runbooks"),
)
"""Settings that `exporters` have no use for."""


class MailSettings(Settings):
    """What an operator may set under `mlflow:monitoring.mail`."""

    to: Email = Field(description="Who is told of an alert, and of its end.")
    sender: Email = Field(description="From whom.")
    server: HostAndPort = Field(description="The mail server, such as smtp.example.com:587. It must speak TLS.")
    user: str | None = Field(
        default=None, description="Who logs in there. The password: `pulumi config set --secret smtpPassword`."
    )


class MonitoringSettings(Settings):
    """What an operator may set under `mlflow:monitoring`."""

    mode: Literal["off", "exporters", "bundled"] = Field(
        default="off",
        description="`exporters` for a Prometheus of your own (`make scrape` prints what it needs); `bundled` brings "
        "Prometheus and Alertmanager.",
    )
    mail: MailSettings | None = Field(default=None, description="Alerts by mail.")
    webhook: bool = Field(
        default=False,
        description="Alerts by Alertmanager's webhook: `pulumi config set --secret alertWebhookUrl`.",
    )
    dead_mans_switch: bool = Field(
        default=False,
        description="Call an address every minute while alerts can be sent, so that somebody else notices when they "
        "cannot: `pulumi config set --secret deadMansSwitchUrl`.",
    )
    retention_days: int = Field(default=30, ge=1, le=3650, description="How long Prometheus keeps what it has seen,")
    retention_gb: int = Field(default=5, ge=1, le=10_000, description="unless that is more gigabytes than these.")
    memory_mb: int = Field(default=512, ge=256, le=1_048_576, description="Memory limit of Prometheus.")
    cpus: Cpus = Field(default=1.0, description="Processors that each of them may use.")
    prometheus_port: Port | None = Field(
        default=None, description="Publish Prometheus on this port of the host's loopback address. It asks for nothing."
    )
    alertmanager_port: Port | None = Field(
        default=None, description="Publish Alertmanager there, to silence an alert. It asks for nothing."
    )
    grafana_port: Port | None = Field(
        default=None,
        description="Run Grafana, with the dashboards of `assets/monitoring`, and publish it there. The user is admin, "
        "its password `make password SERVICE=grafana` prints.",
    )
    runbooks: HttpUrl | None = Field(
        default=None,
        description="The URL of `docs/operations/alerts.md` for those who receive alerts, such as "
        "`https://git.example.com/ops/mlflow/blob/main/docs/operations/alerts.md`. Without it, an alert names the file.",
    )

    @property
    def on(self) -> bool:
        """Whether anything is watched."""
        return self.mode != "off"

    @property
    def parts(self) -> tuple[str, ...]:
        """What is deployed for it."""
        exporters = ("postgres-exporter", "blackbox-exporter") if self.on else ()
        bundled = ("prometheus", "alertmanager") if self.mode == "bundled" else ()
        return (*exporters, *bundled, *(["grafana"] if bundled and self.grafana_port else []))

    @property
    def published(self) -> bool:
        """Whether somebody wants to look at it from the host."""
        return bool(self.addresses)

    @property
    def addresses(self) -> dict[str, int]:
        """What somebody can look at, by the port on the host's loopback address."""
        ports = {
            "Prometheus": self.prometheus_port,
            "Alertmanager": self.alertmanager_port,
            "Grafana": self.grafana_port,
        }
        return {name: port for name, port in ports.items() if port and self.mode == "bundled"}

    @property
    def leaves(self) -> bool:
        """Whether somebody outside is told."""
        return self.mode == "bundled" and bool(self.mail or self.webhook or self.dead_mans_switch)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Which secrets it needs that nobody can generate."""
        wanted = {
            MAIL_SECRET: bool(self.mail and self.mail.user),
            WEBHOOK_SECRET: self.webhook,
            SWITCH_SECRET: self.dead_mans_switch,
        }
        return tuple(key for key, is_wanted in wanted.items() if is_wanted and self.mode == "bundled")
