"""How the server is reached: its URL, its endpoints and their authentication."""

from dataclasses import dataclass

from settings.traefik import SINGLE_SIGN_ON, Authentication, TraefikSettings


@dataclass(frozen=True, kw_only=True)
class Route:
    """How the server is reached, and who may: through Traefik by name, or on a port of the host."""

    traefik: TraefikSettings
    hostname: str | None
    authentication: Authentication
    server_port: int | None
    """Of the host, if one was asked for."""
    server_address: str
    """Of the host, on which that port is published."""

    DEFAULT_PORT = 5000
    """Without Traefik, and without another choice."""

    @property
    def published_port(self) -> int | None:
        """The port of the host on which the server itself is published, if it is."""
        return self.server_port or (self.DEFAULT_PORT if self.traefik.mode == "off" else None)

    @property
    def url(self) -> str:
        """The URL that a browser shows. No trailing slash: it is the browser's Origin, too."""
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
        """Every address at which the server is reached, and how it authenticates whoever comes by it."""
        found = [] if self.traefik.mode == "off" else [(self.url, str(self.authentication))]
        if self.published_port:
            # Traefik authenticates at its own address only; MLflow at each.
            by_mlflow = "mlflow" if self.by_mlflow else "anonymous"
            found.append((f"http://{self.server_address}:{self.published_port}", by_mlflow))
        return found

    @property
    def by_single_sign_on(self) -> bool:
        """Whether somebody else's login page stands before the server."""
        return self.authentication in SINGLE_SIGN_ON

    @property
    def by_password(self) -> bool:
        """Whether Traefik asks for the generated password."""
        return self.authentication in ("password", "singleSignOnAndPassword")

    @property
    def by_mlflow(self) -> bool:
        """Whether MLflow itself asks who somebody is."""
        return self.authentication == "mlflow"
