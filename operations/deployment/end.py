"""`make down` and `make destroy`."""

import time

from offline import engineless
from operations.common.console import StopError, progress, require_confirmation
from operations.common.stack import Stack
from operations.deployment.engine_for import (
    after_a_question,
    approval,
    data_volumes,
    engine_for_removal,
    kept_volumes,
    leftovers,
)
from operations.engine.recovery import recover
from operations.engine.write_back import report_kept_backups, report_what_to_keep, write_back_secrets
from operations.host import containers, nodes
from runtime.cluster import Cluster

TASKS_END_SECONDS = 60


def down(stack: Stack) -> None:
    """Stop the stack and keep its data."""
    stack.report_other_checkout()
    containers.require_no_operation(stack.daemon, stack.name)
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    if stack.is_engineless:
        engineless.down(stack)
        return
    engine = engine_for_removal(stack)
    recover(engine)
    # The generators are deleted with everything else, so the config must have their secrets by then.
    saved = write_back_secrets(engine)
    approved = approval(stack, "stop")
    if engine.show("destroy", "--exclude-protected", *_refreshed(stack), *approved):
        raise StopError(
            f"{stack.name} is not stopped completely; the reason is above\n{after_a_question(approved)}"
            f"  to try again, type: make down STACK={stack.name}"
        )
    report_what_to_keep(engine, saved)
    kept = data_volumes(stack)
    progress(
        f"\n{stack.name} is stopped. Its data is kept in {', '.join(kept) or 'no volume'}.\n"
        f"Start it again: make up STACK={stack.name}\n"
        f"Delete it with all its data: make destroy STACK={stack.name} CONFIRM={stack.name}\n"
        # Pulumi itself has just suggested it. It refuses only while the stack has protected resources.
        f"Do not type `pulumi stack rm`: it deletes {stack.path.name}, and with it the data keys of the stack."
    )


def _refreshed(stack: Stack) -> list[str]:
    """Return the option without which a service or a secret that was removed by hand makes a removal fail."""
    return ["--refresh"] if Cluster(stack.daemon).problem() is None else []


def destroy(stack: Stack) -> None:
    """Delete the stack with its data, and check that nothing is left."""
    stack.report_other_checkout()
    containers.require_no_operation(stack.daemon, stack.name)
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    if stack.is_engineless:
        engineless.destroy(stack)
        return
    doomed = ", ".join(data_volumes(stack)) or "no data volume"
    require_confirmation(
        stack.name, f"This permanently deletes every run, model and artifact of {stack.name} ({doomed})."
    )
    engine = engine_for_removal(stack)
    recover(engine)
    # Backups are kept, so the stack file must have the data key that decrypts them.
    saved = write_back_secrets(engine)
    engine.call("state", "unprotect", "--all", "--yes")
    if engine.show("destroy", *_refreshed(stack), "--yes"):
        raise StopError(
            f"{stack.name} is not deleted completely; the reason is above\n  to try again, type: make destroy "
            f"STACK={stack.name}"
        )
    for volume in kept_volumes(stack):
        stack.daemon.api.remove_volume(volume)
    nodes.remove_checks(stack)
    left = leftovers(stack)
    deadline = time.monotonic() + TASKS_END_SECONDS
    # Swarm removes the containers of tasks after the service is gone.
    while stack.settings.on_swarm and left and time.monotonic() < deadline:
        time.sleep(1)
        left = leftovers(stack)
    if left:
        raise StopError(
            f"not deleted: {', '.join(left)}\n"
            "  type docker rm -f (container), docker network rm, docker volume rm, docker service rm or docker secret "
            "rm, and the name"
        )
    stack.forget_checkout()
    report_what_to_keep(engine, saved)
    progress(
        f"{stack.name} is deleted: no container, network or data volume is left.\n"
        f"{stack.path.name} is kept: it has the secrets, and the data key of any backup.\n"
        "Do not type `pulumi stack rm`: it deletes this file."
    )
    report_kept_backups(stack)
