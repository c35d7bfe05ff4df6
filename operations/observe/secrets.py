"""`make password` and `make scrape`: secrets of a deployed stack."""

import os

from offline import engineless_state
from operations.common.console import StopError, output, progress
from operations.common.stack import Stack
from operations.deployment import engine_for
from operations.engine import encrypted
from operations.engine.backend import chosen_backend, passphrase_path
from operations.engine.engine import Engine
from settings import names
from settings.names import MONITORING_TYPE
from settings.stack import NAMESPACE


def password(stack: Stack) -> None:
    """Print the generated password of clients, or with `SERVICE=grafana` that of Grafana, and nothing else."""
    if os.environ.get("SERVICE") == "grafana":
        if not stack.settings.monitoring.grafana_port:
            raise StopError(f"{stack.name} has no Grafana: mlflow:monitoring.grafanaPort is not set")
        output(_require_credential(stack, "grafanaPassword", "mlflow:monitoring.grafanaPort"))
        return
    route = stack.settings.route
    if route.by_single_sign_on and not route.by_password:
        raise StopError(
            f"{stack.name} has no generated password: clients send the user and password of your single sign-on"
        )
    if not route.by_password and not route.by_mlflow:
        raise StopError(f"{stack.name} has no password: mlflow:authentication is anonymous")
    output(
        _require_credential(stack, "adminPassword" if route.by_mlflow else "clientPassword", "mlflow:authentication")
    )


def _require_credential(stack: Stack, key: str, setting: str) -> str:
    """Return a secret; raise `StopError` if the setting that needs it is not deployed yet."""
    if found := credential(stack, key):
        return found
    raise StopError(
        f"{stack.name} has no {key} yet: {setting} was changed but not deployed\n  type: make up STACK={stack.name}"
    )


def scrape(stack: Stack) -> None:
    """Print the scrape configuration for your own Prometheus, as a file for its `scrape_config_files`."""
    if stack.is_engineless:
        raise StopError(
            f"{stack.name} was deployed without the engine, so it has no state with the scrape configuration\n"
            "  to run Prometheus in the stack instead, set mlflow:monitoring.mode: bundled"
        )
    outputs = _engine_with_stack(stack).state.outputs(MONITORING_TYPE)[MONITORING_TYPE]
    found = next(iter(outputs.values()), {}).get("scrape")
    if not found:
        raise StopError(
            f"monitoring is not deployed with {stack.name}\n"
            f"  set mlflow:monitoring: {{mode: exporters}} in {stack.path.name}, then type: make up STACK={stack.name}"
        )
    network = names.docker_name(stack.name, stack.settings.wanted_networks.name("monitoring"))
    progress(f"this contains passwords; your Prometheus must be on the network {network}")
    output(found.rstrip())


def _engine_with_stack(stack: Stack) -> Engine:
    """Return the engine; raise `StopError` if the backend does not have the stack. Creates no stack."""
    engine = engine_for.engine_of(stack, install=False)
    if not engine.has_stack():
        raise StopError(
            f"{stack.name} was not deployed from here: {chosen_backend() or 'the local backend'} has no such stack\n"
            f"  if a colleague deployed it on this host, put its passphrase into {passphrase_path(stack)} (mode 0600): "
            "docs/operations/state-and-passphrase.md#a-second-person\n"
            "  if it was deployed from another machine, set PULUMI_BACKEND_URL to the backend used there; else type: "
            f"make up STACK={stack.name}"
        )
    return engine


def credential(stack: Stack, key: str) -> str | None:
    """Return a generated secret in plain text, or None if the stack has no secret with this key.

    Raises `StopError` if it cannot be read. The stack file is read first, because that needs only the passphrase.
    """
    if stack.is_engineless:
        return engineless_state.credentials(stack).get(key)
    if isinstance(clear := stack.values.get(f"{NAMESPACE}:{key}"), str):
        # Plain text is allowed in dev, with a warning.
        return clear
    passphrase = encrypted.passphrase(passphrase_path(stack))
    if passphrase and (found := (encrypted.decrypt_secrets(stack.document, passphrase) or {}).get(key)):
        return found
    return _engine_with_stack(stack).secrets().get(key)
