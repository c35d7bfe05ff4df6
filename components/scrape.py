"""The scrape targets, for the bundled and for an existing Prometheus."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pulumi

from settings import names

EXPIRY = 4102444800
"""Expiry of a token: 2100-01-01, in seconds since 1970. A new secret revokes a token. An expiry relative to the current
date would change every plan."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A scrape target: an address that Prometheus reads metrics from."""

    job: str
    instance: str
    """Name of the service: server, postgres."""
    address: str
    """Host and port, on the network `monitoring`."""
    path: str = "/metrics"
    every_s: int = 15
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)
    every_task: bool = False
    """Whether the address is that of a Swarm service: each of its tasks is scraped."""
    tls: bool = False
    """Whether the target speaks TLS, with a certificate of the stack's authority for the host of the address."""
    secret: pulumi.Output[str] | None = None
    """The bearer token, if the target requires one."""

    @property
    def is_further_replica(self) -> bool:
        """Whether another replica of the server has a target with the same job."""
        return self.instance != names.SERVER and names.is_replica(self.instance)


def scrape_config(
    target: Target, stack: str, secret: Mapping[str, str], authority: Mapping[str, str]
) -> dict[str, Any]:
    """Return one entry of Prometheus' `scrape_configs`.

    `secret` is the location of the target's token (`{"file": path}`), or the token itself (`{"value": token}`).
    `authority` is that of the stack, in Prometheus' terms: `{"ca_file": path}` or `{"ca": certificate}`.
    """
    found: dict[str, Any] = {
        # A job name must be unique in a Prometheus. The label `job` below names the series.
        "job_name": "-".join(["mlflow", stack, target.job, *([target.instance] if target.is_further_replica else [])]),
        "metrics_path": target.path,
        "scrape_interval": f"{target.every_s}s",
        **(_tasks(target, stack) if target.every_task else _static(target, stack)),
    }
    if target.tls:
        host = target.address.rpartition(":")[0]
        # The task of a cluster is reached by its address, which no certificate has.
        found |= {"scheme": "https", "tls_config": {**authority, "server_name": host}}
    if target.params:
        found["params"] = {key: list(values) for key, values in target.params.items()}
    if target.secret is not None:
        found["authorization"] = (
            {"credentials_file": secret["file"]} if "file" in secret else {"credentials": secret["value"]}
        )
    return found


def _static(target: Target, stack: str) -> dict[str, Any]:
    labels = {"stack": stack, "job": target.job, "instance": target.instance}
    return {"static_configs": [{"targets": [target.address], "labels": labels}]}


def _tasks(target: Target, stack: str) -> dict[str, Any]:
    """Return the discovery of a service's tasks: Docker's DNS has the address of each. It is also their `instance`."""
    host, _, port = target.address.rpartition(":")
    return {
        "dns_sd_configs": [{"names": [f"tasks.{host}"], "type": "A", "port": int(port), "refresh_interval": "15s"}],
        "relabel_configs": [
            {"target_label": label, "replacement": value} for label, value in (("stack", stack), ("job", target.job))
        ],
    }


def external_scrape_config(
    targets: Sequence[Target], stack: str, authority: pulumi.Output[str] | None
) -> pulumi.Output[str]:
    """Return the scrape configuration for an existing Prometheus, a file for its `scrape_config_files`. Secret."""
    secrets = [target.secret if target.secret is not None else pulumi.Output.from_input("") for target in targets]

    def rendered(values: list[str]) -> str:
        trusted, *tokens = values
        entries = [
            scrape_config(target, stack, {"value": token}, {"ca": trusted})
            for target, token in zip(targets, tokens, strict=True)
        ]
        # JSON is YAML.
        return json.dumps({"scrape_configs": entries}, indent=2) + "\n"

    return pulumi.Output.secret(pulumi.Output.all(authority or "", *secrets).apply(rendered))


def minio_token(access_key: str, secret_key: str) -> str:
    """Return the token with which an identity can read MinIO's metrics.

    It is the one that `mc admin prometheus generate` prints: a JWT, signed with HS512, with the identity as its subject
    (MinIO's cmd/jwt.go and cmd/metrics-router.go).
    """
    parts = [{"alg": "HS512", "typ": "JWT"}, {"exp": EXPIRY, "iss": "prometheus", "sub": access_key}]
    signed = b".".join(_base64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    signature = hmac.new(secret_key.encode(), signed, hashlib.sha512).digest()
    return (signed + b"." + _base64(signature)).decode()


def _base64(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")
