"""The modules of the blackbox exporter."""

from collections.abc import Mapping
from typing import Any


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
