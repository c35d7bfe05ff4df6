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
"""Settings that apply to `mode: bundled` only."""


class MailSettings(Settings):
    """The settings under `mlflow:monitoring.mail`."""

    to: Email = Field(description="The e-mail address that gets a mail when an alert fires and when it is resolved.")
    sender: Email = Field(description="The sender's e-mail address.")
    server: HostAndPort = Field(
        description="Host and port of the mail server, such as smtp.example.com:587. It must support TLS."
    )
    user: str | None = Field(
        default=None,
        description="The user name for the mail server. Set its password with `pulumi config set --secret "
        "smtpPassword`. Without a user, Alertmanager does not log in.",
    )


class MonitoringSettings(Settings):
    """The settings under `mlflow:monitoring`."""

    mode: Literal["off", "exporters", "bundled"] = Field(
        default="off",
        description="`exporters`: exporters for your existing Prometheus; `make scrape` prints its scrape "
        "configuration. `bundled`: exporters, Prometheus and Alertmanager. All other settings but `cpus` need "
        "`bundled`.",
    )
    mail: MailSettings | None = Field(default=None, description="Send notifications by mail.")
    webhook: bool = Field(
        default=False,
        description="Send notifications to a webhook, in Alertmanager's format. Set its URL with "
        "`pulumi config set --secret alertWebhookUrl`.",
    )
    dead_mans_switch: bool = Field(
        default=False,
        description="Call a URL every minute while notifications can be sent, so that an external service notices when "
        "they cannot. Set the URL with `pulumi config set --secret deadMansSwitchUrl`.",
    )
    retention_days: int = Field(
        default=30, ge=1, le=3650, description="Days that Prometheus keeps its data, if they fit into `retentionGb`."
    )
    retention_gb: int = Field(
        default=5, ge=1, le=10_000, description="Maximum size of Prometheus' data, in GB. The oldest is deleted first."
    )
    memory_mb: int = Field(default=512, ge=256, le=1_048_576, description="Memory limit of Prometheus, in MB.")
    cpus: Cpus = Field(default=1.0, description="The number of CPUs that each monitoring container may use.")
    prometheus_port: Port | None = Field(
        default=None,
        description="Publish Prometheus on this port of the host's loopback address. It has no authentication.",
    )
    alertmanager_port: Port | None = Field(
        default=None,
        description="Publish Alertmanager on this port of the host's loopback address, to silence alerts. It has no "
        "authentication.",
    )
    grafana_port: Port | None = Field(
        default=None,
        description="Run Grafana with the dashboards of `assets/monitoring`, and publish it on this port of the host's "
        "loopback address. The user is `admin`; `make password SERVICE=grafana` prints the password.",
    )
    runbooks: HttpUrl | None = Field(
        default=None,
        description="The URL of `docs/operations/alerts.md` for those who receive alerts, such as "
        "`https://git.example.com/ops/mlflow/blob/main/docs/operations/alerts.md`. Without it, alerts name the file.",
    )

    @property
    def on(self) -> bool:
        """Whether the stack is monitored."""
        return self.mode != "off"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the services that are deployed for monitoring."""
        exporters = ("postgres-exporter", "blackbox-exporter") if self.on else ()
        bundled = ("prometheus", "alertmanager") if self.mode == "bundled" else ()
        return (*exporters, *bundled, *(["grafana"] if bundled and self.grafana_port else []))

    @property
    def published(self) -> bool:
        """Whether a monitoring service has a host port."""
        return bool(self.addresses)

    @property
    def addresses(self) -> dict[str, int]:
        """The published interfaces: name to port on the host's loopback address."""
        ports = {
            "Prometheus": self.prometheus_port,
            "Alertmanager": self.alertmanager_port,
            "Grafana": self.grafana_port,
        }
        return {name: port for name, port in ports.items() if port and self.mode == "bundled"}

    @property
    def needs_egress(self) -> bool:
        """Whether Alertmanager sends notifications to receivers outside the stack."""
        return self.mode == "bundled" and bool(self.mail or self.webhook or self.dead_mans_switch)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Keys of the required secrets that cannot be generated."""
        wanted = {
            MAIL_SECRET: bool(self.mail and self.mail.user),
            WEBHOOK_SECRET: self.webhook,
            SWITCH_SECRET: self.dead_mans_switch,
        }
        return tuple(key for key, is_wanted in wanted.items() if is_wanted and self.mode == "bundled")
