"""Bringing a stack up, planning it, stopping it, deleting it."""

import os
import re
import time
from pathlib import Path

from components import names
from config import UNATTENDED, StackConfig
from operations import copied, edge, preflight, rehearse
from operations.checkout import ROOT, Stack, require_line_ends
from operations.console import StopError, answer, interactive, make, require_name, say
from operations.engine import Engine, NoEngineError
from operations.plan import Plan
from operations.recovery import recover
from operations.saved import save_credentials, tell_of_backups, tell_what_to_keep

POLICY_PAGE = "docs/adr/0013-policy.md"
SPOKEN = {"deploy": "up", "stop": "down"}
"""What is asked about, and the verb of `make`."""


def up(stack: Stack) -> None:
    """Check, plan, deploy, save the secrets, print the URL."""
    stack.tell_of_another_checkout()
    require_line_ends()
    stack.settings  # noqa: B018 - wrong settings stop everything, before Docker is even looked at
    preflight.require_docker(stack)
    preflight.require_host(stack)
    preflight.require_images(stack)
    preflight.no_strangers(stack.daemon, stack.name, kept=stack.settings.networks)
    if disk := preflight.disk_problem(stack.daemon):
        say(f"warning: {disk}")
    started = time.time()
    try:
        _deploy(stack)
    except StopError:
        _show_build_log(started)
        raise
    stack.remember_checkout()
    edge.require_closed(stack)
    settings = stack.settings
    for name, port in settings.monitoring.addresses.items():
        say(f"{name}: http://127.0.0.1:{port}")
    say(f'\nMLflow is ready. Use it from Python: eval "$(make -s client STACK={stack.name})"')
    answer(settings.route.url)
    if way := edge.way_there(stack):
        say(way)
    for problem in [*filter(None, [edge.resolution_problem(stack)]), *stack.warnings]:
        say(f"warning: {problem}")


def _deploy(stack: Stack) -> None:
    """Deploy by the engine, and save the secrets; by a rehearsal where the engine cannot be had."""
    if rehearse.asked_for():
        rehearse.up(stack, "it was asked for")
        return
    try:
        engine = Engine(stack)
    except NoEngineError as error:
        rehearse.up(stack, str(error))
        return
    new = engine.select()
    approval = _approval(stack, "deploy", engine)
    rehearsed = rehearse.owns(stack)
    handed_over = rehearse.hand_over(engine, approved=bool(approval))
    if rehearsed:
        # Asked already, with the plan in sight; a second question would leave the stack down where the answer is no.
        approval = ["--yes"]
    recover(engine)
    # One that the settings do without for now, such as the backups' key, would be forgotten with its generator.
    saved = [] if new else save_credentials(engine)
    say(f"deploying {stack.name}")
    # A pull request's preview has asked them; an `up` by hand, or of a file that was changed since, has not.
    rules = _rules(stack.settings, stack.name) if stack.name != UNATTENDED else []
    # Where nobody is asked about a plan, nobody waits for it; but a rule must stop all of a change, and not its end.
    plan = ["--skip-preview"] if approval and not rules else []
    if engine.show("up", "--refresh", *approval, *plan, *rules):
        raise StopError(
            f"the deployment of {stack.name} did not complete; the reason is above, after 'error:'\n"
            "  no data are lost, and what was not to change runs on\n"
            f"  mend the cause, or take the change back where the reason does not advise against it, "
            f"then type: make up STACK={stack.name}\n"
            "  (secrets that were generated are in the state alone until one completes)"
        )
    tell_what_to_keep(engine, [*handed_over, *saved, *save_credentials(engine)])


def _show_build_log(since: float) -> None:
    """Show the end of the log of each image's build that ran and failed: Pulumi's own error has its exit code only."""
    for log in sorted(ROOT.glob("build-*.log")):
        if log.stat().st_mtime < since:
            continue
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-15:]
        # The last words of a build that succeeded, by the one builder and by the other; earlier ones are in it, too.
        if not re.search(r"Successfully tagged|naming to \S+( [\d.]+s)? done", "\n".join(lines[-3:])):
            say(f"\nan image's build ended with (all of it: {log.name})\n" + "\n".join(f"  {line}" for line in lines))


def engine_of(stack: Stack, *, install: bool = True) -> Engine:
    """Return the engine for a verb that nothing else can do; raise `StopError` saying why there is none to do it.

    Without `install` no provider is downloaded, for a verb that needs none.
    """
    try:
        return Engine(stack, install=install)
    except NoEngineError:
        if rehearse.owns(stack):
            raise StopError(
                f"{stack.name} was deployed by a rehearsal, which has no plan and no state\n"
                "  every verb but preview, drift, env and scrape works as ever: "
                "docs/operations.md#without-the-pulumi-engine"
            ) from None
        raise


def _engine_to_end(stack: Stack) -> Engine:
    """Return the engine for a verb that ends a stack; raise `StopError` where there is nothing to end, or no engine."""
    nothing = f"{stack.name} is not deployed on {stack.daemon.host}"
    try:
        engine = engine_of(stack)
    except NoEngineError:
        if not leftovers(stack):
            raise StopError(nothing) from None
        raise
    if not engine.knows_stack():
        if not leftovers(stack):
            raise StopError(nothing)
        engine.select()
    return engine


def preview(stack: Stack) -> None:
    """Print what `up` would change, as Markdown. Asks the Docker daemon nothing. `COPY=1` plans a new stack like it."""
    if os.environ.get("COPY") == "1":
        copied.preview(stack)
        return
    plan = _planned(stack)
    if plan is None:
        # A plan of it as it is would leave a stack in the backend, and a salt in its file.
        copied.preview(stack)
        return
    answer(plan.markdown())
    if plan.complete:
        ways = (f"`{url}` (authentication: {asked})" for url, asked in stack.settings.route.ways_in)
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
    paused = preflight.paused(stack.daemon, stack.name) if plan.complete else []
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
        if os.environ.get("COPY") == copied.MADE:
            engine.select()
        elif not engine.knows_stack():
            return None
        return engine.plan(*options, *(_rules(settings, stack.name) if ruled else []))
    except StopError as error:
        return Plan(stack=stack.name, errors=[str(error)])


def _rules(settings: StackConfig, stack: str) -> list[str]:
    """Return the options that ask the rules of `policy/`, where they apply."""
    # Where nothing is protected, somebody tries something out. An image from a file has no digest to ask for.
    if not (settings.protect_data or stack == UNATTENDED) or settings.images.archive:
        return []
    rules = ["--policy-pack", str(ROOT / "policy")]
    if given := os.environ.get("POLICY"):
        if not Path(given).is_file():
            raise StopError(f"POLICY={given}: there is no such file; nothing was changed\n  see {POLICY_PAGE}")
        return [*rules, "--policy-pack-config", given]
    if settings.object_store.copy_from:
        # Neither store is protected while the artifacts move: each must be able to leave the stack.
        rules += ["--policy-pack-config", str(ROOT / "policy" / "while-artifacts-move.json")]
    return rules


def down(stack: Stack) -> None:
    """Stop everything and keep the data."""
    stack.tell_of_another_checkout()
    preflight.end_of_restore(stack.daemon, stack.name)
    preflight.no_strangers(stack.daemon, stack.name)
    if rehearse.owns(stack):
        rehearse.down(stack)
        return
    engine = _engine_to_end(stack)
    recover(engine)
    # The generators are forgotten with the rest: what they made must be in the config by then.
    saved = save_credentials(engine)
    if engine.show("destroy", "--exclude-protected", *_approval(stack, "stop")):
        raise StopError(
            f"{stack.name} was not stopped completely; the reason is above; try again: make down STACK={stack.name}"
        )
    tell_what_to_keep(engine, saved)
    kept = _data_volumes(stack)
    say(
        f"\n{stack.name} is stopped. Its data are kept in {', '.join(kept) or 'no volume'}.\n"
        f"Start it again: make up STACK={stack.name}\n"
        f"Delete it with all its data: make destroy STACK={stack.name} CONFIRM={stack.name}\n"
        # Pulumi has just told to, or refuses it, where it still holds what is protected.
        f"Never type `pulumi stack rm` for it: it deletes {stack.path.name}, and the keys to data and backups with it."
    )


def destroy(stack: Stack) -> None:
    """Delete everything, the data included, and prove that nothing is left."""
    stack.tell_of_another_checkout()
    preflight.end_of_restore(stack.daemon, stack.name)
    preflight.no_strangers(stack.daemon, stack.name)
    if rehearse.owns(stack):
        rehearse.destroy(stack)
        return
    doomed = ", ".join(_data_volumes(stack)) or "no data volume"
    require_name(stack.name, f"This deletes every run, model and artifact of {stack.name} ({doomed}), for ever.")
    engine = _engine_to_end(stack)
    recover(engine)
    # Backups outlive the stack, and what opens them must be in its file by then.
    saved = save_credentials(engine)
    engine.call("state", "unprotect", "--all", "--yes")
    if engine.show("destroy", "--yes"):
        raise StopError(
            f"{stack.name} was not deleted completely; the reason is above; try again: make destroy STACK={stack.name}"
        )
    for volume in _outliving(stack):
        stack.daemon.api.remove_volume(volume)
    left = leftovers(stack)
    if left:
        raise StopError(f"still there: {', '.join(left)}\n  remove them by hand: docker rm / docker volume rm")
    tell_what_to_keep(engine, saved)
    say(
        f"{stack.name} is gone: no container, network or data volume is left. "
        f"Its secrets, those of any backup among them, are still in {stack.path.name}: "
        "`pulumi stack rm` would delete it."
    )
    tell_of_backups(stack)


def leftovers(stack: Stack) -> list[str]:
    """Return every container, network and volume of this stack that is on the Docker host."""
    api = stack.daemon.api
    ours = {"label": f"{names.STACK_LABEL}={stack.name}"}
    return sorted(
        [container["Names"][0].lstrip("/") for container in api.containers(all=True, filters=ours)]
        + [network["Name"] for network in api.networks(filters=ours)]
        + [volume["Name"] for volume in api.volumes(filters=ours)["Volumes"] or []]
        + _outliving(stack)
    )


def _outliving(stack: Stack) -> list[str]:
    return sorted(volume for volume in stack.daemon.volumes() if names.outlives(stack.name, volume))


def _data_volumes(stack: Stack) -> list[str]:
    return sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))


def _approval(stack: Stack, verb: str, engine: Engine | None = None) -> list[str]:
    """Return the option that spares Pulumi's question, where nobody needs to answer it or somebody has.

    Raises `StopError` where nobody can be asked, after the plan of `engine`, if there is one to show.
    """
    if stack.name == UNATTENDED or os.environ.get("YES") == "1":
        return ["--yes"]
    if not interactive():
        if engine:
            say(engine.plan().markdown())
        raise StopError(
            f"{verb} {stack.name}?\n  without a terminal, answer with YES=1: {make(SPOKEN[verb], stack.name)} YES=1"
        )
    return []
