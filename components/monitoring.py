"""Monitoring: what watches the stack, and whom it tells. Exporters for somebody's own Prometheus, or one of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pulumi
import pulumi_docker as docker
from pydantic import Field

from components import names
from components.backup import Backup
from components.credentials import Credential
from components.mlflow import Mlflow
from components.object_store import ObjectStore
from components.platform import Platform
from components.postgres import DATABASE, MONITORING_ROLE, Postgres
from components.postgres import PORT as POSTGRES_PORT
from components.runtime import CONFIG, NOBODY, SECRETS, Files, HealthCheck, Limits, Publish, Service, Workload
from components.scrape import Target, for_another, scrape_config
from components.settings import Cpus, Email, HostAndPort, HttpUrl, Port, Settings
from components.traefik import HTTPS_PORT, Traefik, Upstream

ASSETS = Path(__file__).parent.parent / "assets" / "monitoring"
PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT, POSTGRES_EXPORTER_PORT, BLACKBOX_PORT = 9090, 9093, 3000, 9187, 9115
GRAFANA_USER = "472:0"
"""Who it is in the official image."""
WEBHOOK_SECRET, SWITCH_SECRET, MAIL_SECRET = "alertWebhookUrl", "deadMansSwitchUrl", "smtpPassword"
"""Secrets in the stack's config that nobody can generate. Whoever knows such an address may write to it."""
TYPE = "mlflow:components:Monitoring"
"""Type of the component. Its output `scrape` is what `make scrape` prints."""
RUNBOOKS = "docs/operations.md"
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
        description="Where whoever is told finds `docs/operations.md`, such as "
        "`https://git.example.com/ops/mlflow/blob/main/docs/operations.md`. Without it, an alert names the file.",
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


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is asked, beside the database."""

    targets: Sequence[Target]
    upstream: Upstream
    """The server, as whoever asks whether it is ready needs to know it."""
    artifacts: ObjectStore
    hostname: str | None
    """Under which the bundled Traefik answers; None where there is none."""

    @classmethod
    def of(cls, server: Mlflow, artifacts: ObjectStore, backup: Backup, proxy: Traefik) -> Self:
        """Return everything of a stack."""
        return cls(
            targets=[server.target, *artifacts.targets, *backup.targets, *proxy.targets],
            upstream=server.upstream,
            artifacts=artifacts,
            hostname=proxy.hostname,
        )


class Monitoring(pulumi.ComponentResource):
    """What watches the stack: exporters, and where the settings want it, Prometheus, Alertmanager and Grafana."""

    credentials: list[Credential]
    """What guards Grafana."""
    scrape: pulumi.Output[str]
    """What a Prometheus of somebody's own needs, with the passwords; empty where nothing is watched. Secret."""

    def __init__(
        self,
        name: str,
        settings: MonitoringSettings,
        *,
        platform: Platform,
        database: Postgres,
        watched: Watched,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Deploy what `settings` name."""
        super().__init__(TYPE, name, None, opts)
        self._platform = platform
        self._settings = settings
        self.credentials = []
        self.scrape = pulumi.Output.secret("")
        if settings.on:
            targets = [*watched.targets, self._postgres_exporter(database), *self._blackbox_exporter(watched)]
            self.scrape = for_another(targets, pulumi.get_stack())
            if settings.mode == "bundled":
                alertmanager = self._alertmanager()
                prometheus = self._prometheus(targets, alertmanager)
                if settings.grafana_port:
                    self._grafana(prometheus)
        # Not an output of the stack: every StackReference reads those, and this has passwords in it.
        self.register_outputs({"mode": settings.mode, "scrape": self.scrape})

    def _service(
        self,
        name: str,
        *,
        files: Files,
        command: Sequence[str],
        check: Sequence[str],
        networks: Sequence[pulumi.Output[str]],
        memory_mb: int = 128,
        user: str = NOBODY,
        env: Mapping[str, pulumi.Input[str]] | None = None,
        data: Mapping[str, pulumi.Input[str]] | None = None,
        publish: tuple[int | None, int] | None = None,
    ) -> Service:
        """Run one of them; all are alike."""
        return Service(
            name,
            Workload(
                image=self._platform.images.of(name),
                limits=Limits(memory_mb=memory_mb, cpus=self._settings.cpus),
                networks=networks,
                entrypoint=command[:1],
                command=command[1:],
                # Collect garbage before the kernel kills.
                env={"GOMEMLIMIT": f"{memory_mb * 8 // 10}MiB", "HOME": "/tmp", **(env or {})},  # noqa: S108
                files=files,
                data=data or {},
                tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108 - inside the container
                user=user,
            ),
            HealthCheck(command=check, interval_s=15),
            platform=self._platform,
            grace_s=30,
            publish=[Publish(port=publish[0], target=publish[1])] if publish and publish[0] else [],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _postgres_exporter(self, database: Postgres) -> Target:
        """Run the exporter of Postgres' own figures, and of what MLflow has in it."""
        name = "postgres-exporter"
        assert database.monitoring_password is not None, "Platform.monitored was false"  # noqa: S101
        service = self._service(
            name,
            files=Files(
                secrets={"password": database.monitoring_password.value},
                config={"queries.yml": (ASSETS / "queries.yml").read_text()},
            ),
            command=[
                "postgres_exporter",
                f"--extend.query-path={CONFIG}/queries.yml",
                "--collector.postmaster",
                "--log.format=json",
            ],
            check=_asks(POSTGRES_EXPORTER_PORT, "/"),
            networks=self._platform.networks.monitored_and(backend=True),
            env={
                "DATA_SOURCE_URI": f"{database.service.host}:{POSTGRES_PORT}/{DATABASE}?sslmode=disable",
                "DATA_SOURCE_USER": MONITORING_ROLE,
                "DATA_SOURCE_PASS_FILE": f"{SECRETS}/password",
            },
        )
        # Counting takes the database longer than any other question.
        return Target(
            job="postgres", instance="postgres", address=f"{service.host}:{POSTGRES_EXPORTER_PORT}", every_s=30
        )

    def _blackbox_exporter(self, watched: Watched) -> list[Target]:
        """Run the exporter that asks as a client would, and return what to ask it for."""
        name = "blackbox-exporter"
        upstream = watched.upstream
        modules = {"readiness": readiness_module(upstream.probe), "store": readiness_module({})}
        asked = {
            "readiness": ("server", f"http://{upstream.name}:{upstream.port}{upstream.probe['path']}"),
            "store": (watched.artifacts.kind, watched.artifacts.health),
        }
        if watched.hostname:
            modules["edge"] = edge_module(watched.hostname)
            asked["edge"] = ("traefik", f"https://{names.physical(pulumi.get_stack(), 'traefik')}:{HTTPS_PORT}/")
        service = self._service(
            name,
            files=Files(config={"blackbox.yml": json.dumps({"modules": modules}, indent=2) + "\n"}),
            command=["blackbox_exporter", f"--config.file={CONFIG}/blackbox.yml", "--log.format=json"],
            check=_asks(BLACKBOX_PORT, "/-/healthy"),
            networks=self._platform.networks.monitored_and(),
            memory_mb=64,
        )
        return [
            Target(
                job=module,
                instance=instance,
                address=f"{service.host}:{BLACKBOX_PORT}",
                path="/probe",
                params={"module": [module], "target": [url]},
            )
            for module, (instance, url) in asked.items()
        ]

    def _alertmanager(self) -> str:
        """Run Alertmanager, and return its address."""
        name, settings, stack = "alertmanager", self._settings, pulumi.get_stack()
        if not settings.leaves:
            pulumi.log.warn(
                "mlflow:monitoring: nobody is told of an alert; set mail or webhook, or look yourself: "
                + names.make("status", pulumi.get_stack())
            )
        # Silences, and who was told already.
        memory = docker.Volume(
            f"{name}-memory",
            name=names.physical(stack, f"{name}-memory"),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=pulumi.ResourceOptions(parent=self),
        )
        config = pulumi.Config("mlflow")
        service = self._service(
            name,
            files=Files(
                secrets={key: config.require_secret(key) for key in settings.secrets},
                config={"alertmanager.yml": json.dumps(alerting(settings), indent=2) + "\n"},
            ),
            command=[
                "alertmanager",
                f"--config.file={CONFIG}/alertmanager.yml",
                "--storage.path=/alertmanager",
                # There is no second one to agree with.
                "--cluster.listen-address=",
                *_published_at(settings.alertmanager_port),
                "--log.format=json",
            ],
            check=_asks(ALERTMANAGER_PORT, "/-/ready"),
            networks=self._platform.networks.monitored_and(
                outward=settings.leaves, published=settings.alertmanager_port is not None
            ),
            data={"/alertmanager": memory.name},
            publish=(settings.alertmanager_port, ALERTMANAGER_PORT),
        )
        return f"{service.host}:{ALERTMANAGER_PORT}"

    def _prometheus(self, targets: Sequence[Target], alertmanager: str) -> str:
        """Run Prometheus, and return its address."""
        name, settings, stack = "prometheus", self._settings, pulumi.get_stack()
        host = names.physical(stack, name)
        itself = [
            Target(job="prometheus", instance="prometheus", address=f"{host}:{PROMETHEUS_PORT}"),
            Target(job="alertmanager", instance="alertmanager", address=alertmanager),
        ]
        rendered = watching([*targets, *itself], stack, alertmanager)
        history = docker.Volume(
            f"{name}-history",
            name=names.history_volume(stack),
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )
        service = self._service(
            name,
            files=Files(
                secrets={target.job: target.secret for target in targets if target.secret is not None},
                config={
                    "prometheus.yml": json.dumps(rendered, indent=2) + "\n",
                    "alerts.yml": alerts(settings.runbooks),
                },
            ),
            command=[
                "prometheus",
                f"--config.file={CONFIG}/prometheus.yml",
                "--storage.tsdb.path=/prometheus",
                f"--storage.tsdb.retention.time={settings.retention_days}d",
                f"--storage.tsdb.retention.size={settings.retention_gb}GB",
                *_published_at(settings.prometheus_port),
                "--log.format=json",
            ],
            check=_asks(PROMETHEUS_PORT, "/-/ready"),
            networks=self._platform.networks.monitored_and(published=settings.prometheus_port is not None),
            memory_mb=settings.memory_mb,
            data={"/prometheus": history.name},
            publish=(settings.prometheus_port, PROMETHEUS_PORT),
        )
        return f"http://{service.host}:{PROMETHEUS_PORT}"

    def _grafana(self, prometheus: str) -> None:
        """Run Grafana with our dashboards. What somebody makes in it beside them is gone with its container."""
        name = "grafana"
        password = Credential("grafana-password", "grafanaPassword", parent=self)
        self.credentials = [password]
        self._service(
            name,
            files=Files(secrets={"admin-password": password.value}, config=provisioning(prometheus)),
            command=["/run.sh"],
            check=_asks(GRAFANA_PORT, "/api/health"),
            networks=self._platform.networks.monitored_and(published=True),
            # Its sources are processes of their own since 13.2, within the same limit: each collects before half of it.
            memory_mb=768,
            user=GRAFANA_USER,
            env={
                "GOMEMLIMIT": "384MiB",
                "GF_SECURITY_ADMIN_PASSWORD__FILE": f"{SECRETS}/admin-password",
                "GF_PATHS_PROVISIONING": f"{CONFIG}/provisioning",
                "GF_PATHS_DATA": "/tmp",  # noqa: S108 - inside the container
                "GF_PATHS_LOGS": "/tmp",  # noqa: S108
                "GF_LOG_MODE": "console",
                "GF_USERS_ALLOW_SIGN_UP": "false",
                "GF_ANALYTICS_REPORTING_ENABLED": "false",
                "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
                # It would replace the sources that the image brings, below a root that cannot be written.
                "GF_PLUGINS_PREINSTALL_DISABLED": "true",
                "GF_NEWS_NEWS_FEED_ENABLED": "false",
                "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{CONFIG}/dashboards/mlflow.json",
            },
            publish=(self._settings.grafana_port, GRAFANA_PORT),
        )


def _published_at(port: int | None) -> list[str]:
    """Return the option that makes the links in what is sent lead somewhere, for whoever sits on the host."""
    return [f"--web.external-url=http://127.0.0.1:{port}/"] if port else []


def _asks(port: int, path: str) -> list[str]:
    """Return the health check that all of their images can run."""
    return ["wget", "-q", "-T", "4", "-O", "/dev/null", f"http://127.0.0.1:{port}{path}"]


def readiness_module(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the blackbox exporter asks whether a service is ready: as its health check does, and Traefik."""
    http: dict[str, Any] = {
        "valid_status_codes": [probe.get("status", 200)],
        "follow_redirects": False,
        "preferred_ip_protocol": "ip4",
    }
    if "headers" in probe:
        http["headers"] = dict(probe["headers"])
    return {"prober": "http", "timeout": "10s", "http": http}


def edge_module(hostname: str) -> dict[str, Any]:
    """Return how it asks the bundled Traefik, whose certificate's end it tells. Who is not logged in is an answer."""
    return {
        "prober": "http",
        "timeout": "10s",
        "http": {
            "valid_status_codes": [200, 302, 303, 307, 401],
            "follow_redirects": False,
            "preferred_ip_protocol": "ip4",
            "fail_if_not_ssl": True,
            "headers": {"Host": hostname},
            # Whether it is the right one, who looks from outside finds out: make doctor.
            "tls_config": {"server_name": hostname, "insecure_skip_verify": True},
        },
    }


def watching(targets: Sequence[Target], stack: str, alertmanager: str) -> dict[str, Any]:
    """Return Prometheus' configuration."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s", "external_labels": {"stack": stack}},
        "rule_files": [f"{CONFIG}/alerts.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [scrape_config(target, stack, {"file": f"{SECRETS}/{target.job}"}) for target in targets],
    }


def alerts(runbooks: str | None) -> str:
    """Return the rules, each with a link to what to do: in the checkout, unless it is somewhere else to be read."""
    rules = (ASSETS / "alerts.yml").read_text()
    return rules.replace(f"runbook_url: {RUNBOOKS}#", f"runbook_url: {runbooks or RUNBOOKS}#")


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


def provisioning(prometheus: str) -> dict[str, str]:
    """Return what Grafana reads when it starts: its source, and the dashboards."""
    source = {
        "apiVersion": 1,
        "datasources": [
            {"name": "Prometheus", "uid": "prometheus", "type": "prometheus", "url": prometheus, "isDefault": True}
        ],
    }
    provider = {
        "apiVersion": 1,
        "providers": [{"name": "mlflow", "type": "file", "options": {"path": f"{CONFIG}/dashboards"}}],
    }
    return {
        "provisioning/datasources/prometheus.yaml": json.dumps(source, indent=2) + "\n",
        "provisioning/dashboards/mlflow.yaml": json.dumps(provider, indent=2) + "\n",
        **{f"dashboards/{file.name}": file.read_text() for file in sorted((ASSETS / "dashboards").glob("*.json"))},
    }
