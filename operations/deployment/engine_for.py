"""The engine for a command, the approval that it needs, and what a stack has on the host."""

from operations.common.console import StopError, flag, make, progress, pulumi_can_ask
from operations.common.stack import Stack
from operations.engine.cli import NoEngineError
from operations.engine.engine import Engine
from runtime.cluster import Cluster
from settings import names
from settings.stack import DEV

MAKE_VERBS = {"deploy": "up", "stop": "down"}
"""The action that needs approval, and its verb of `make`."""


def engine_of(stack: Stack, *, install: bool = True) -> Engine:
    """Return the engine for a verb that needs it; raise `StopError` if there is no engine.

    With `install=False` nothing is downloaded, for a verb that needs no provider.
    """
    try:
        return Engine(stack, install=install)
    except NoEngineError:
        if stack.is_engineless:
            raise StopError(
                f"{stack.name} was deployed without the engine, so it has no plan and no state\n"
                "  preview, drift, env, scrape, pin, rotate and upgrade-postgres need the engine: "
                "docs/operations/without-the-engine.md"
            ) from None
        raise


def engine_for_removal(stack: Stack) -> Engine:
    """Return the engine for `down` or `destroy`; raise `StopError` if nothing is deployed or there is no engine."""
    nothing = f"{stack.name} is not deployed on {stack.daemon.host}"
    try:
        engine = engine_of(stack)
    except NoEngineError:
        if not leftovers(stack):
            raise StopError(nothing) from None
        raise
    if not engine.has_stack():
        if not leftovers(stack):
            raise StopError(nothing)
        engine.select()
    return engine


def leftovers(stack: Stack) -> list[str]:
    """Return everything of this stack that exists on the Docker host, and on its cluster."""
    api, cluster = stack.daemon.api, Cluster(stack.daemon)
    ours = {"label": f"{names.STACK_LABEL}={stack.name}"}
    return sorted(
        [container["Names"][0].lstrip("/") for container in api.containers(all=True, filters=ours)]
        + [network["Name"] for network in api.networks(filters=ours)]
        + [volume["Name"] for volume in api.volumes(filters=ours)["Volumes"] or []]
        + kept_volumes(stack)
        + [*cluster.services(stack.name).values(), *cluster.secrets(stack.name)]
    )


def kept_volumes(stack: Stack) -> list[str]:
    """Return the volumes that `make down` keeps and `make destroy` deletes."""
    return sorted(volume for volume in stack.daemon.volumes() if names.survives_down(stack.name, volume))


def data_volumes(stack: Stack) -> list[str]:
    """Return the data volumes of a stack."""
    return sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))


def after_a_question(approved: list[str]) -> str:
    """Return what a failed change may also mean if Pulumi asked a person: its exit code does not tell a no."""
    return "" if approved else "  if you answered no: the plan was not carried out, and there is nothing to fix\n"


def approval(stack: Stack, verb: str, engine: Engine | None = None) -> list[str]:
    """Return the option that skips Pulumi's question, if no approval is needed or it was given.

    Without a terminal for the question, print the plan of `engine`, if given, and raise `StopError`.
    """
    if flag("YES") or stack.name == DEV:
        return ["--yes"]
    if not pulumi_can_ask():
        if engine:
            plan = engine.plan()
            progress(plan.markdown())
            if plan.errors:
                raise StopError(
                    "nothing was changed: the plan failed, see above\n"
                    f"  fix {stack.path.name}, then type the same again"
                )
        raise StopError(
            "nothing was changed: without a terminal for input and output, this needs your approval\n"
            f"  to {verb} {stack.name}, type: {make(MAKE_VERBS[verb], stack.name)} YES=1"
        )
    return []
