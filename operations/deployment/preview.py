"""`make preview` and `make drift`: plans as Markdown."""

import os

from operations.common.console import StopError, answer
from operations.common.stack import Stack
from operations.deployment import copy_preview
from operations.deployment.engine_for import engine_of
from operations.deployment.policy import policy_options
from operations.engine.plan import Plan
from operations.host import containers


def preview(stack: Stack) -> None:
    """Print what `up` would change, as Markdown. Asks the Docker daemon nothing. `COPY=1` plans a new stack like it."""
    if os.environ.get("COPY") == "1":
        copy_preview.preview(stack)
        return
    plan = _planned(stack)
    if plan is None:
        # A plan of it as it is would leave a stack in the backend, and a salt in its file.
        copy_preview.preview(stack)
        return
    answer(plan.markdown())
    if plan.complete:
        ways = (f"`{url}` (authentication: {asked})" for url, asked in stack.settings.route.endpoints)
        answer(f"\n**Addresses**: {', '.join(ways)}")
    if not plan.complete:
        what = "breaks a rule of policy/" if plan.refused else "could not be made"
        raise StopError(f"the plan of {stack.name} {what}; the reason is above")


def drift(stack: Stack) -> None:
    """Print what on the Docker host is not as the program and the settings say; raise `StopError` if anything is."""
    plan = _planned(stack, "--refresh", ruled=False)
    if plan is None:
        plan = Plan(stack=stack.name, errors=[f"{stack.name} was never deployed with this backend"])
    answer(plan.markdown("Drift"))
    paused = containers.paused(stack.daemon, stack.name) if plan.complete else []
    for name in paused:
        answer(f"`{name}` is paused: `docker unpause {name}`")
    # For a program: what a person reads of it is not for grep.
    answer(f"<!-- drift: {'unknown' if not plan.complete else 'found' if plan.changes or paused else 'none'} -->")
    if not plan.complete:
        raise StopError(f"whether {stack.name} has drifted could not be found out; the reason is above")
    if plan.changes:
        raise StopError(
            f"{stack.name} is not what its settings say\n"
            f"  to bring it back, type: make up STACK={stack.name}; to keep it, change the settings to it"
        )
    if paused:
        raise StopError(f"{stack.name} does not run as its settings say\n  type: docker unpause {' '.join(paused)}")


def _planned(stack: Stack, *options: str, ruled: bool = True) -> Plan | None:
    """Return a plan, or one that says why there is none; None of a stack that the backend does not have.

    With `ruled`, the rules are asked, where they apply.
    """
    try:
        settings = stack.settings
        engine = engine_of(stack)
        if os.environ.get("COPY") == copy_preview.MADE:
            engine.select()
        elif not engine.knows_stack():
            return None
        return engine.plan(*options, *(policy_options(settings, stack.name) if ruled else []))
    except StopError as error:
        return Plan(stack=stack.name, errors=[str(error)])
