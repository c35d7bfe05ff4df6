"""Monitoring and alerting: exporters for an existing Prometheus, or Prometheus, Alertmanager and Grafana."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.alertmanager import alertmanager_config
from components.blackbox import edge_module, readiness_module
from components.grafana import grafana_files
from components.internal_tls import AUTHORITY
from components.platform import Platform
from components.postgres import DATABASE, MONITORING_ROLE, Postgres
from components.postgres import PORT as POSTGRES_PORT
from components.prometheus import alert_rules, prometheus_config
from components.scrape import Target, external_scrape_config
from components.scrape_targets import ScrapeTargets
from components.traefik import HTTPS_PORT
from runtime.credentials import Credential, provided_secret
from runtime.service import Service
from runtime.workload import CONFIG, NOBODY, SECRETS, Files, HealthCheck, Limits, Publish, Workload
from settings import names
from settings.monitoring import (
    ALERTMANAGER_PORT,
    BLACKBOX_PORT,
    GRAFANA_PORT,
    POSTGRES_EXPORTER_PORT,
    PROMETHEUS_PORT,
    MonitoringSettings,
)
from settings.names import MONITORING_TYPE

ASSETS = Path(__file__).parent.parent / "assets" / "monitoring"
GRAFANA_USER = "472:0"
"""User and group of Grafana in the official image."""


class Monitoring(pulumi.ComponentResource):
    """Monitoring and alerting of the stack.

    With `exporters`, creates the services `postgres-exporter` and `blackbox-exporter`. With `bundled`, also creates
    `prometheus` and `alertmanager` with a volume each, and `grafana` if `grafanaPort` is set.
    """

    credentials: list[Credential]
    """The password of Grafana."""
    scrape: pulumi.Output[str]
    """The scrape configuration for an existing Prometheus, with credentials. Secret."""

    def __init__(
        self,
        name: str,
        settings: MonitoringSettings,
        *,
        platform: Platform,
        database: Postgres,
        targets: ScrapeTargets,
        secrets_due: datetime | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Deploy the services for `settings.mode`. At `secrets_due`, the first secret is too old: an alert fires."""
        super().__init__(MONITORING_TYPE, name, None, opts)
        self._platform = platform
        self._settings, self._secrets_due = settings, secrets_due
        self._tasks, self._scrapes_docker = targets.tasks, targets.docker_metrics is not None
        self.credentials = []
        scraped = [*targets.targets, self._postgres_exporter(database), *self._blackbox_exporter(targets)]
        self.scrape = external_scrape_config(scraped, pulumi.get_stack(), self._platform.tls.authority)
        if settings.mode == "bundled":
            alertmanager = self._alertmanager()
            prometheus = self._prometheus(scraped, alertmanager)
            if settings.grafana_port:
                self._grafana(prometheus)
        # Not a stack output: every StackReference can read those, and this contains credentials.
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
        """Run a monitoring service with the options that all have in common."""
        tls = self._platform.tls
        if tls and name != "grafana":
            # Grafana is for a browser on the host, which does not trust the authority.
            secrets = {**files.secrets, **tls.identity(name)}
            files = Files(secrets=secrets, config={**files.config, "web.yml": json.dumps(tls.web_config(), indent=2)})
            command = [*command, f"--web.config.file={CONFIG}/web.yml"]
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
            HealthCheck(command=check),
            platform=self._platform,
            grace_s=30,
            publish=[Publish(port=publish[0], target=publish[1])] if publish and publish[0] else [],
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _http_health_check(self, port: int, path: str) -> list[str]:
        return http_request(self._platform.tls.scheme, port, path)

    def _external_url(self, port: int | None) -> list[str]:
        """Return the option for the links in notifications. They work in a browser on the host."""
        return [f"--web.external-url={self._platform.tls.scheme}://127.0.0.1:{port}/"] if port else []

    @property
    def _tls(self) -> bool:
        return bool(self._platform.tls)

    def _postgres_exporter(self, database: Postgres) -> Target:
        """Run the exporter for Postgres' statistics and MLflow's row counts."""
        name = "postgres-exporter"
        verification = f"sslmode=verify-full&sslrootcert={AUTHORITY}" if self._platform.tls else "sslmode=disable"
        assert database.monitoring_password is not None, "Platform.monitored is false"  # noqa: S101
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
            check=self._http_health_check(POSTGRES_EXPORTER_PORT, "/"),
            networks=self._platform.networks.monitoring_networks(backend=True),
            env={
                "DATA_SOURCE_URI": f"{database.service.host}:{POSTGRES_PORT}/{DATABASE}?{verification}",
                "DATA_SOURCE_USER": MONITORING_ROLE,
                "DATA_SOURCE_PASS_FILE": f"{SECRETS}/password",
            },
        )
        # Counting rows takes the database longer than any other query.
        return Target(
            job="postgres",
            instance="postgres",
            address=f"{service.host}:{POSTGRES_EXPORTER_PORT}",
            every_s=30,
            tls=self._tls,
        )

    def _blackbox_exporter(self, targets: ScrapeTargets) -> list[Target]:
        """Run the exporter that sends requests as a client does, and return its scrape targets."""
        name = "blackbox-exporter"
        upstream = targets.upstream
        modules = {
            "readiness": readiness_module(upstream.probe, tls=self._tls),
            "store": readiness_module({}, tls=self._tls),
        }
        asked = {
            ("readiness", server): f"{self._platform.tls.scheme}://{host}:{upstream.port}{upstream.probe['path']}"
            for server, host in upstream.servers.items()
        }
        asked["store", targets.artifacts.kind] = targets.artifacts.health
        if targets.hostname:
            modules["edge"] = edge_module(targets.hostname)
            asked["edge", "traefik"] = f"https://{names.docker_name(pulumi.get_stack(), 'traefik')}:{HTTPS_PORT}/"
        service = self._service(
            name,
            files=Files(config={"blackbox.yml": json.dumps({"modules": modules}, indent=2) + "\n"}),
            command=["blackbox_exporter", f"--config.file={CONFIG}/blackbox.yml", "--log.format=json"],
            check=self._http_health_check(BLACKBOX_PORT, "/-/healthy"),
            networks=self._platform.networks.monitoring_networks(),
            memory_mb=64,
        )
        return [
            Target(
                job=module,
                instance=instance,
                address=f"{service.host}:{BLACKBOX_PORT}",
                path="/probe",
                params={"module": [module], "target": [url]},
                tls=self._tls,
            )
            for (module, instance), url in asked.items()
        ]

    def _alertmanager(self) -> Target:
        """Run Alertmanager, and return its scrape target."""
        name, settings, stack = "alertmanager", self._settings, pulumi.get_stack()
        if not settings.needs_egress:
            pulumi.log.warn(
                "mlflow:monitoring: alerts have no receiver; set mail or webhook. To see the alerts, type: "
                + names.make_command("status", pulumi.get_stack())
            )
        # Holds silences, and which notifications have been sent.
        memory = docker.Volume(
            f"{name}-memory",
            name=names.docker_name(stack, f"{name}-memory"),
            labels=[{"label": names.STACK_LABEL, "value": stack}],
            opts=pulumi.ResourceOptions(parent=self),
        )
        service = self._service(
            name,
            files=Files(
                secrets={key: provided_secret(key) for key in settings.secrets},
                config={"alertmanager.yml": alertmanager_config(settings)},
            ),
            command=[
                "alertmanager",
                f"--config.file={CONFIG}/alertmanager.yml",
                "--storage.path=/alertmanager",
                # Turns off clustering: there is only one Alertmanager.
                "--cluster.listen-address=",
                *self._external_url(settings.alertmanager_port),
                "--log.format=json",
            ],
            check=self._http_health_check(ALERTMANAGER_PORT, "/-/ready"),
            networks=self._platform.networks.monitoring_networks(
                outward=settings.needs_egress, published=settings.alertmanager_port is not None
            ),
            data={"/alertmanager": memory.name},
            publish=(settings.alertmanager_port, ALERTMANAGER_PORT),
        )
        address = f"{service.host}:{ALERTMANAGER_PORT}"
        return Target(job="alertmanager", instance="alertmanager", address=address, tls=self._tls)

    def _prometheus(self, targets: Sequence[Target], alertmanager: Target) -> str:
        """Run Prometheus, and return its URL."""
        name, settings, stack = "prometheus", self._settings, pulumi.get_stack()
        host = names.docker_name(stack, name)
        itself = [
            Target(job="prometheus", instance="prometheus", address=f"{host}:{PROMETHEUS_PORT}", tls=self._tls),
            alertmanager,
        ]
        rendered = prometheus_config([*targets, *itself], stack, alertmanager)
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
                    "alerts.yml": alert_rules(
                        settings.runbooks, tasks=self._tasks, secrets_due=self._secrets_due, stack=stack
                    ),
                },
            ),
            command=[
                "prometheus",
                f"--config.file={CONFIG}/prometheus.yml",
                "--storage.tsdb.path=/prometheus",
                f"--storage.tsdb.retention.time={settings.retention_days}d",
                f"--storage.tsdb.retention.size={settings.retention_gb}GB",
                *self._external_url(settings.prometheus_port),
                "--log.format=json",
            ],
            check=self._http_health_check(PROMETHEUS_PORT, "/-/ready"),
            networks=self._platform.networks.monitoring_networks(
                published=settings.prometheus_port is not None, outward=self._scrapes_docker
            ),
            memory_mb=settings.memory_mb,
            data={"/prometheus": history.name},
            publish=(settings.prometheus_port, PROMETHEUS_PORT),
        )
        return f"{self._platform.tls.scheme}://{service.host}:{PROMETHEUS_PORT}"

    def _grafana(self, prometheus: str) -> None:
        """Run Grafana with the dashboards of `ASSETS`. Other dashboards are lost when its container is replaced."""
        name = "grafana"
        password = Credential("grafana-password", "grafanaPassword", parent=self)
        self.credentials = [password]
        self._service(
            name,
            files=Files(
                secrets={"admin-password": password.value, **self._platform.tls.trust},
                config=grafana_files(prometheus),
            ),
            command=["/run.sh"],
            check=http_request("http", GRAFANA_PORT, "/api/health"),
            networks=self._platform.networks.monitoring_networks(published=True),
            # Since 13.2, its data sources are separate processes under the same limit: each collects before half of it.
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
                # It would replace the data sources in the image, and the root file system is read-only.
                "GF_PLUGINS_PREINSTALL_DISABLED": "true",
                "GF_NEWS_NEWS_FEED_ENABLED": "false",
                "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{CONFIG}/dashboards/mlflow.json",
            },
            publish=(self._settings.grafana_port, GRAFANA_PORT),
        )


def http_request(scheme: str, port: int, path: str) -> list[str]:
    """Return a request within the container that all monitoring images can send."""
    # BusyBox' wget cannot verify a certificate. The request does not leave the container.
    insecure = ["--no-check-certificate"] if scheme == "https" else []
    return ["wget", "-q", "-T", "4", *insecure, "-O", "/dev/null", f"{scheme}://127.0.0.1:{port}{path}"]
