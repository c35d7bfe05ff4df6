"""`make down` and `make destroy`."""

from offline import engineless
from operations.common.console import StopError, require_name, say
from operations.common.stack import Stack
from operations.deployment.engine_for import approval, data_volumes, engine_to_end, kept_volumes, leftovers
from operations.engine.recovery import recover
from operations.engine.write_back import report_kept_backups, report_what_to_keep, save_credentials
from operations.host import containers


def down(stack: Stack) -> None:
    """Stop everything and keep the data."""
    stack.report_other_checkout()
    containers.require_no_restore(stack.daemon, stack.name)
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    if engineless.owns(stack):
        engineless.down(stack)
        return
    engine = engine_to_end(stack)
    recover(engine)
    # The generators are forgotten with the rest: what they made must be in the config by then.
    saved = save_credentials(engine)
    if engine.show("destroy", "--exclude-protected", *approval(stack, "stop")):
        raise StopError(
            f"{stack.name} was not stopped completely; the reason is above; try again: make down STACK={stack.name}"
        )
    report_what_to_keep(engine, saved)
    kept = data_volumes(stack)
    say(
        f"\n{stack.name} is stopped. Its data are kept in {', '.join(kept) or 'no volume'}.\n"
        f"Start it again: make up STACK={stack.name}\n"
        f"Delete it with all its data: make destroy STACK={stack.name} CONFIRM={stack.name}\n"
        # Pulumi has just told to, or refuses it, where it still holds what is protected.
        f"Never type `pulumi stack rm` for it: it deletes {stack.path.name}, and the keys to data and backups with it."
    )


def destroy(stack: Stack) -> None:
    """Delete everything, the data included, and prove that nothing is left."""
    stack.report_other_checkout()
    containers.require_no_restore(stack.daemon, stack.name)
    containers.require_no_foreign_containers(stack.daemon, stack.name)
    if engineless.owns(stack):
        engineless.destroy(stack)
        return
    doomed = ", ".join(data_volumes(stack)) or "no data volume"
    require_name(stack.name, f"This deletes every run, model and artifact of {stack.name} ({doomed}), for ever.")
    engine = engine_to_end(stack)
    recover(engine)
    # Backups outlive the stack, and what opens them must be in its file by then.
    saved = save_credentials(engine)
    engine.call("state", "unprotect", "--all", "--yes")
    if engine.show("destroy", "--yes"):
        raise StopError(
            f"{stack.name} was not deleted completely; the reason is above; try again: make destroy STACK={stack.name}"
        )
    for volume in kept_volumes(stack):
        stack.daemon.api.remove_volume(volume)
    left = leftovers(stack)
    if left:
        raise StopError(f"still there: {', '.join(left)}\n  remove them by hand: docker rm / docker volume rm")
    report_what_to_keep(engine, saved)
    say(
        f"{stack.name} is gone: no container, network or data volume is left. "
        f"Its secrets, those of any backup among them, are still in {stack.path.name}: "
        "`pulumi stack rm` would delete it."
    )
    report_kept_backups(stack)
