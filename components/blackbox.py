"""The modules of the blackbox exporter."""

from collections.abc import Mapping
from typing import Any

from components.internal_tls import AUTHORITY


def readiness_module(probe: Mapping[str, Any], *, tls: bool) -> dict[str, Any]:
    """Return the blackbox module that checks whether a service is ready, as Traefik and the health check do.

    With `tls`, it verifies the certificate of the service, and reports when it ends.
    """
    http: dict[str, Any] = {
        "valid_status_codes": [probe.get("status", 200)],
        "follow_redirects": False,
        "preferred_ip_protocol": "ip4",
    }
    if tls:
        http |= {"fail_if_not_ssl": True, "tls_config": {"ca_file": AUTHORITY}}
    if "headers" in probe:
        http["headers"] = dict(probe["headers"])
    return {"prober": "http", "timeout": "10s", "http": http}


def edge_module(hostname: str) -> dict[str, Any]:
    """Return the blackbox module for the bundled Traefik and the expiry of its certificate.

    A redirect to a login page and 401 count as success.
    """
    return {
        "prober": "http",
        "timeout": "10s",
        "http": {
            "valid_status_codes": [200, 302, 303, 307, 401],
            "follow_redirects": False,
            "preferred_ip_protocol": "ip4",
            "fail_if_not_ssl": True,
            "headers": {"Host": hostname},
            # `make doctor` verifies the certificate, from outside.
            "tls_config": {"server_name": hostname, "insecure_skip_verify": True},
        },
    }
