"""`make password` and `make scrape`: secrets of a deployed stack."""

import os

from offline import engineless
from operations.common.console import StopError, answer, say
from operations.common.stack import Stack
from operations.deployment import engine_for
from operations.engine import encrypted
from operations.engine.backend import chosen_backend, passphrase_path
from operations.engine.engine import Engine
from settings import names
from settings.names import TYPE as MONITORING
from settings.stack import NAMESPACE


def password(stack: Stack) -> None:
    """Print the generated password with which a client is let in, or a person into `SERVICE=grafana`; nothing else."""
    if os.environ.get("SERVICE") == "grafana":
        if not stack.settings.monitoring.grafana_port:
            raise StopError(f"{stack.name} has no Grafana (mlflow:monitoring.grafanaPort)")
        answer(_required(stack, "grafanaPassword", "mlflow:monitoring.grafanaPort"))
        return
    route = stack.settings.route
    if route.by_single_sign_on and not route.by_password:
        raise StopError(
            f"{stack.name} has no password of its own: a client sends the user and password of your single sign-on"
        )
    if not route.by_password and not route.by_mlflow:
        raise StopError(f"{stack.name} asks nobody who he is (mlflow:authentication)")
    answer(_required(stack, "adminPassword" if route.by_mlflow else "clientPassword", "mlflow:authentication"))


def _required(stack: Stack, key: str, setting: str) -> str:
    """Return a secret; raise `StopError` where the setting that wants it was not deployed yet."""
    if found := credential(stack, key):
        return found
    raise StopError(
        f"{stack.name} has no {key} yet: {setting} was changed, and not deployed\n  type: make up STACK={stack.name}"
    )


def scrape(stack: Stack) -> None:
    """Print what a Prometheus of somebody's own needs, as a file for its `scrape_config_files`."""
    if engineless.owns(stack):
        raise StopError(f"{stack.name} was deployed by a rehearsal, which keeps no state\n  use mode: bundled there")
    found = next(iter(_known_engine(stack).outputs(MONITORING)[MONITORING].values()), {}).get("scrape")
    if not found:
        raise StopError(
            f"nothing watches {stack.name}\n"
            f"  in {stack.path.name}: mlflow:monitoring: {{mode: exporters}}; then: make up STACK={stack.name}"
        )
    say(f"this holds passwords; your Prometheus has to be on the network {names.physical(stack.name, 'monitoring')}")
    answer(found.rstrip())


def _known_engine(stack: Stack) -> Engine:
    """Return the engine; raise `StopError` where the backend does not know the stack. Looking makes no stack."""
    engine = engine_for.engine_of(stack, install=False)
    if not engine.knows_stack():
        raise StopError(
            f"{stack.name} was not deployed from here: {chosen_backend() or 'the backend of this machine'} has no such "
            f"stack\n  where it was deployed from another machine, PULUMI_BACKEND_URL names their backend; else type: "
            f"make up STACK={stack.name}"
        )
    return engine


def credential(stack: Stack, key: str) -> str | None:
    """Return a generated secret in clear, or None where the stack has none of this key.

    Raises `StopError` where it cannot be had. The stack's file is asked first: that needs the passphrase alone.
    """
    if engineless.owns(stack):
        return engineless.credentials(stack).get(key)
    if isinstance(clear := stack.values.get(f"{NAMESPACE}:{key}"), str):
        # In dev, with a warning.
        return clear
    passphrase = encrypted.passphrase(passphrase_path(stack))
    if passphrase and (found := (encrypted.opened(stack.document, passphrase) or {}).get(key)):
        return found
    return _known_engine(stack).secrets().get(key)
