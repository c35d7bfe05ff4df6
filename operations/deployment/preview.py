"""`make preview` and `make drift`: plans as Markdown."""

import os
from datetime import UTC, datetime

from operations.common.console import StopError, flag, output
from operations.common.stack import Stack
from operations.deployment import copy_preview
from operations.deployment.engine_for import engine_of
from operations.deployment.policy import policy_options
from operations.engine.plan import Plan
from operations.host import containers
from settings.names import IN_COPY


def preview(stack: Stack) -> None:
    """Print what `up` would change, as Markdown. Does not contact Docker. `COPY=1` plans a copy without secrets."""
    if os.environ.get("COPY") != IN_COPY and flag("COPY"):
        copy_preview.preview(stack)
        return
    plan = _plan(stack)
    if plan is None:
        # Planning the stack itself would create it in the backend, and write a salt into the stack file.
        copy_preview.preview(stack)
        return
    output(plan.markdown())
    if plan.complete:
        ways = (f"`{url}` (authentication: {asked})" for url, asked in stack.settings.route.endpoints)
        output(f"\n**Endpoints**: {', '.join(ways)}")
        if stack.settings.tls.is_due(datetime.now(UTC)):
            output(
                "\n`make up` also issues new certificates for the services, which restarts every service, unless newer "
                "ones are deployed."
            )
    if not plan.complete:
        what = "violates a policy in policy/" if plan.refused else "failed"
        raise StopError(f"the plan of {stack.name} {what}; the reason is above")


def drift(stack: Stack) -> None:
    """Print the differences between the Docker host and the plan; raise `StopError` if there are any."""
    plan = _plan(stack, "--refresh", ruled=False)
    if plan is None:
        words = (
            f"{stack.name} was never deployed with this backend\n"
            f"set PULUMI_BACKEND_URL to the backend that deployed it, or type: make up STACK={stack.name}"
        )
        plan = Plan(stack=stack.name, errors=[words])
    output(plan.markdown("Drift"))
    paused = containers.paused(stack.daemon, stack.name) if plan.complete else []
    for name in paused:
        output(f"`{name}` is paused: `docker unpause {name}`")
    # For programs, which must not parse the text for people.
    output(f"<!-- drift: {'unknown' if not plan.complete else 'found' if plan.changes or paused else 'none'} -->")
    if not plan.complete:
        raise StopError(f"could not check {stack.name} for drift; the reason is above")
    if plan.changes:
        raise StopError(
            f"the Docker host differs from the settings of {stack.name}\n"
            f"  to undo the differences, type: make up STACK={stack.name}; to keep them, change the settings to match"
        )
    if paused:
        raise StopError(f"containers of {stack.name} are paused\n  type: docker unpause {' '.join(paused)}")


def _plan(stack: Stack, *options: str, ruled: bool = True) -> Plan | None:
    """Return a plan, or one with only the error; None if the backend does not have the stack.

    With `ruled`, the plan is checked against the policies, where they apply.
    """
    try:
        settings = stack.settings
        engine = engine_of(stack)
        if os.environ.get("COPY") == IN_COPY:
            engine.select()
        elif not engine.has_stack():
            return None
        return engine.plan(*options, *(policy_options(settings, stack.name) if ruled else []))
    except StopError as error:
        return Plan(stack=stack.name, errors=[str(error)])
