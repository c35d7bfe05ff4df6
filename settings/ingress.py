"""How the server is reached: its URL, its endpoints and their authentication."""

from dataclasses import dataclass

from settings.traefik import SINGLE_SIGN_ON, Authentication, TraefikSettings


@dataclass(frozen=True, kw_only=True)
class Route:
    """How clients reach the server, through Traefik or on a host port, and how they authenticate."""

    traefik: TraefikSettings
    hostname: str | None
    authentication: Authentication
    server_port: int | None
    """The host port of `mlflow:server.port`, if it is set."""
    server_address: str
    """The address of the host on which the port is published."""
    drain_s: int = 20
    """How long requests in flight may take once the server or the bundled Traefik stops, in seconds."""
    replicas: int = 1
    """The number of servers among which Traefik distributes the requests."""
    swarm: bool = False
    """Whether the servers are tasks of a Docker Swarm service."""
    internal_tls: bool = False
    """Whether the servers speak TLS to Traefik."""

    DEFAULT_PORT = 5000
    """The host port if there is no Traefik and `mlflow:server.port` is not set."""

    @property
    def balanced(self) -> bool:
        """Whether there may be several servers at a time. On a cluster, a new task starts before the old one stops."""
        return self.swarm or self.replicas > 1

    @property
    def published_port(self) -> int | None:
        """The host port on which the server itself is published, or None."""
        return self.server_port or (self.DEFAULT_PORT if self.traefik.mode == "off" else None)

    @property
    def url(self) -> str:
        """The URL of the server in a browser. It has no trailing slash: it is also the browser's Origin."""
        if self.traefik.mode == "off":
            loopback = self.server_address == "127.0.0.1"
            host = "127.0.0.1" if loopback else self.hostname or self.server_address
            return f"http://{host}:{self.published_port}"
        if self.traefik.mode == "existing":
            return f"{'https' if self.traefik.tls else 'http'}://{self.hostname}"
        port = "" if self.traefik.https_port == 443 else f":{self.traefik.https_port}"  # noqa: PLR2004 - https
        return f"https://{self.hostname}{port}"

    @property
    def endpoints(self) -> list[tuple[str, str]]:
        """All endpoints of the server: URL and authentication."""
        found = [] if self.traefik.mode == "off" else [(self.url, str(self.authentication))]
        if self.published_port:
            # Traefik authenticates only requests that pass through it; MLflow authenticates all.
            by_mlflow = "mlflow" if self.by_mlflow else "anonymous"
            found.append((f"http://{self.server_address}:{self.published_port}", by_mlflow))
        return found

    @property
    def by_single_sign_on(self) -> bool:
        """Whether an identity provider authenticates, through Traefik."""
        return self.authentication in SINGLE_SIGN_ON

    @property
    def by_password(self) -> bool:
        """Whether Traefik authenticates by the generated password."""
        return self.authentication in ("password", "singleSignOnAndPassword")

    @property
    def by_mlflow(self) -> bool:
        """Whether MLflow itself authenticates."""
        return self.authentication == "mlflow"
