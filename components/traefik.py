"""The bundled Traefik. It reads its routes from a file, and has no access to the Docker socket."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from components.certificates import self_signed
from components.internal_tls import AUTHORITY, CERTIFICATE, KEY
from components.platform import Platform
from components.route import health_check, htpasswd_line, routes
from components.scrape import Target
from runtime.credentials import Credential, provided_secret
from runtime.service import Service
from runtime.workload import CONFIG, Files, HealthCheck, Limits, Metrics, Publish, Workload
from settings import names
from settings.ingress import Route
from settings.secrets import CERTIFICATE_SECRET, DNS_SECRET, KEY_SECRET
from settings.traefik import TraefikSettings

HTTP_PORT, HTTPS_PORT, PING_PORT, METRICS_PORT = 8000, 8443, 8082, 8083
"""Ports in the container. They are above 1023, so Traefik needs no capability to bind them."""
UID = 65532
USERS_FILE, CERTIFICATE_FILE, KEY_FILE, DNS_FILE = "users", "certificate.pem", "key.pem", "dns-token"


class Traefik(pulumi.ComponentResource):
    """The bundled Traefik (`mlflow:traefik.mode: bundled`).

    Creates the service `traefik`. With `certificate: selfSigned`, it also creates a key for the certificate; with
    `acme`, a volume for the certificates.

    It reads its configuration from files, without access to the Docker socket. It deliberately has no dashboard and no
    API. By default, its ports are the only ports of the stack that are reachable from other hosts.
    """

    def __init__(
        self,
        name: str,
        route: Route,
        *,
        platform: Platform,
        upstream: "Upstream",
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Run Traefik when `upstream` is ready, and route to it."""
        super().__init__("mlflow:components:Traefik", name, None, opts)
        self.targets: list[Target] = []
        self.credentials: list[Credential] = []
        self.hostname = route.hostname or ""
        self._run(name, route, platform, upstream)
        self.register_outputs({"url": route.url})

    def _run(self, name: str, route: Route, platform: Platform, upstream: "Upstream") -> None:
        child = pulumi.ResourceOptions(parent=self)
        settings, image = route.traefik, platform.images.traefik
        data: dict[str, pulumi.Input[str]] = {}
        env = {
            "HOME": "/tmp",  # noqa: S108 - inside the container
            # Collect garbage before the kernel kills.
            "GOMEMLIMIT": f"{settings.memory_mb * 7 // 10}MiB",
        }
        user = f"{UID}:{UID}"
        secrets = _secrets(settings, upstream.password) | platform.tls.identity(name)
        if settings.certificate == "selfSigned":
            secrets |= self._self_signed(name, route.hostname or "")
        if settings.certificate == "acme":
            # A new volume belongs to root, because the image has no such folder. Root has no capabilities here.
            user = "0:0"
            env["CF_DNS_API_TOKEN_FILE"] = f"/run/secrets/{DNS_FILE}"
            data["/certificates"] = docker.Volume(
                f"{name}-certificates",
                name=names.certificates_volume(pulumi.get_stack()),
                # Kept, because a certificate authority limits the number of certificates per week.
                opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
            ).name
        service = Service(
            name,
            Workload(
                image=image,
                limits=Limits(memory_mb=settings.memory_mb, cpus=settings.cpus),
                networks=platform.networks.proxy_networks(settings.forward_auth_network),
                entrypoint=["traefik"],
                command=[f"--configFile={CONFIG}/traefik.yml"],
                env=env,
                files=Files(
                    secrets=secrets,
                    config=_configuration(route, upstream, monitored=platform.monitored),
                    # The old Traefik stays until every replica is ready, so its restart takes two seconds.
                    after=[upstream.ready],
                ),
                data=data,
                tmpfs={"/tmp": "size=16m,mode=1777"},  # noqa: S108 - inside the container
                user=user,
                labels={names.AUTHENTICATION_LABEL: route.authentication},
            ),
            HealthCheck(command=["traefik", "healthcheck", f"--configFile={CONFIG}/traefik.yml"], start_period_s=30),
            platform=platform,
            metrics=Metrics(port=METRICS_PORT, scheme=platform.tls.scheme),
            grace_s=route.drain_s + 10,
            publish=[
                Publish(port=settings.http_port, target=HTTP_PORT, address=settings.bind_address),
                Publish(port=settings.https_port, target=HTTPS_PORT, address=settings.bind_address),
            ],
            after=[upstream.ready],
            opts=child,
        )
        if platform.monitored:
            self.targets = [
                Target(
                    job="traefik", instance="traefik", address=f"{service.host}:{METRICS_PORT}", tls=bool(platform.tls)
                )
            ]

    def _self_signed(self, name: str, hostname: str) -> dict[str, pulumi.Output[str]]:
        key = Credential(f"{name}-certificate-key", "traefikCertificateKey", parent=self)
        self.credentials = [key]
        pair = key.value.apply(lambda secret: self_signed(hostname, secret))
        return {CERTIFICATE_FILE: pair.apply(lambda made: made[0]), KEY_FILE: pair.apply(lambda made: made[1])}


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The servers, as Traefik and the blackbox exporter need them."""

    name: str
    """The name of the router and of the load balancer."""
    servers: Mapping[str, str]
    """The replicas: service to host name."""
    port: int
    ready: pulumi.Output[Any]
    """Resolves when the last replica is ready."""
    probe: Mapping[str, Any]
    """The request to which a ready server has an answer: `path`, `headers`, `status`."""
    password: Credential | None
    """The password by which Traefik authenticates clients, if it does."""


def _secrets(settings: TraefikSettings, password: Credential | None) -> dict[str, pulumi.Output[str]]:
    files = {USERS_FILE: password.value.apply(lambda value: f"{htpasswd_line(value)}\n")} if password else {}
    if settings.certificate == "own":
        files[CERTIFICATE_FILE] = provided_secret(CERTIFICATE_SECRET)
        files[KEY_FILE] = provided_secret(KEY_SECRET)
    if settings.certificate == "acme":
        files[DNS_FILE] = provided_secret(DNS_SECRET)
    return files


def _configuration(route: Route, upstream: Upstream, *, monitored: bool) -> dict[str, str]:
    """Return Traefik's configuration files: name to content. JSON is YAML."""
    files = {
        "traefik.yml": static(route.traefik, monitored=monitored, drain_s=route.drain_s, tls=route.internal_tls),
        "routes.yml": dynamic(route, upstream, monitored=monitored),
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def static(
    settings: TraefikSettings, *, monitored: bool = False, drain_s: int = 20, tls: bool = False
) -> dict[str, Any]:
    """Return Traefik's static configuration, which it reads when it starts."""
    entry_points: dict[str, Any] = {
        "web": {
            "address": f":{HTTP_PORT}",
            "http": {"redirections": {"entryPoint": {"to": f":{settings.https_port}", "scheme": "https"}}},
        },
        "websecure": {
            "address": f":{HTTPS_PORT}",
            "http": {"aliasHeadersStrategy": "delete"},
            "transport": {
                # Traefik's default of 60 s interrupts uploads.
                "respondingTimeouts": {"readTimeout": f"{settings.upload_minutes}m"},
                # Requests in flight may end, within the same time as the server allows.
                "lifeCycle": {"graceTimeOut": f"{drain_s + 5}s"},
            },
        },
        "ping": {"address": f"127.0.0.1:{PING_PORT}"},
    }
    found: dict[str, Any] = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "INFO", "format": "json"},
        # By default, the access log contains no headers, so no passwords.
        "accessLog": {"format": "json"},
        "entryPoints": entry_points,
        "ping": {"entryPoint": "ping"},
        "providers": {"file": {"filename": f"{CONFIG}/routes.yml", "watch": False}},
    }
    if monitored:
        entry_points["metrics"] = {"address": f":{METRICS_PORT}"}
        prometheus: dict[str, Any] = {"entryPoint": "metrics", "addRoutersLabels": True}
        # With TLS, a router of its own: Traefik serves metrics in plaintext by itself.
        found["metrics"] = {"prometheus": prometheus | ({"manualRouting": True} if tls else {})}
    if settings.certificate == "acme":
        server = {"caServer": settings.acme_server} if settings.acme_server else {}
        acme = {
            "email": settings.acme_email,
            "storage": "/certificates/acme.json",
            "dnsChallenge": {"provider": "cloudflare"},
        }
        found["certificatesResolvers"] = {"acme": {"acme": acme | server}}
    return found


def _services(name: str, balancer: dict[str, Any], *, fails_over: bool) -> dict[str, Any]:
    """Return Traefik's services. With `fails_over`, it asks all replicas if its health check finds none ready.

    While one replica is replaced, another that answers a single health check too late would count as down, and Traefik
    would answer HTTP 503, although both serve.
    """
    if not fails_over:
        return {name: {"loadBalancer": balancer}}
    ready, every = f"{name}-ready", f"{name}-all"
    unchecked = {key: value for key, value in balancer.items() if key != "healthCheck"}
    return {
        name: {"failover": {"service": ready, "fallback": every}},
        ready: {"loadBalancer": balancer},
        every: {"loadBalancer": unchecked},
    }


def dynamic(route: Route, upstream: Upstream, *, monitored: bool = False) -> dict[str, Any]:
    """Return Traefik's dynamic configuration: routes, health check of the server, certificates."""
    found = routes(route, name=upstream.name, users={"usersFile": f"/run/secrets/{USERS_FILE}"})
    scheme = "https" if route.internal_tls else "http"
    balancer: dict[str, Any] = {
        "servers": [{"url": f"{scheme}://{server}:{upstream.port}"} for server in upstream.servers.values()],
    }
    transport: dict[str, Any] = {"rootCAs": [AUTHORITY]} if route.internal_tls else {}
    if route.swarm:
        # One name for all tasks, so that a health check would find all of them ready or none. Docker removes a task
        # from the name before it stops it, and one that is not healthy. The time-out is that of all addresses of the
        # name together; each gets at least 2 s.
        transport["forwardingTimeouts"] = {"dialTimeout": "6s"}
    else:
        balancer["healthCheck"] = health_check(route)
    if route.balanced and not route.swarm:
        # After 30 s, Traefik's default, most clients have given up; the next replica answers at once.
        transport["forwardingTimeouts"] = {"dialTimeout": "2s"}
    if transport:
        found["http"]["serversTransports"] = {upstream.name: transport}
        balancer["serversTransport"] = upstream.name
    found["http"]["services"] = _services(upstream.name, balancer, fails_over=route.balanced and not route.swarm)
    found["tls"] = {"options": {"default": {"minVersion": "VersionTLS12"}}}
    if route.traefik.certificate != "acme":
        pair = {"certFile": f"/run/secrets/{CERTIFICATE_FILE}", "keyFile": f"/run/secrets/{KEY_FILE}"}
        found["tls"] |= {"certificates": [pair], "stores": {"default": {"defaultCertificate": pair}}}
    if monitored and route.internal_tls:
        found["http"]["routers"]["metrics"] = {
            "rule": "Path(`/metrics`)",
            "entryPoints": ["metrics"],
            "service": "prometheus@internal",
            "tls": {},
        }
        found["tls"].setdefault("certificates", []).append({"certFile": CERTIFICATE, "keyFile": KEY})
    return found
