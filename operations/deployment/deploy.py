"""Bringing a stack up, planning it, stopping it, deleting it."""

import re
import time

from offline import engineless
from operations.common.checkout import ROOT, require_line_ends
from operations.common.console import StopError, answer, say
from operations.common.stack import Stack
from operations.deployment.engine_for import approval
from operations.deployment.policy import policy_options
from operations.engine.cli import NoEngineError
from operations.engine.engine import Engine
from operations.engine.recovery import recover
from operations.engine.write_back import report_what_to_keep, save_credentials
from operations.host import capacity, checks, containers, docker_daemon, images
from operations.observe import ingress
from settings.stack import DEV


def up(stack: Stack) -> None:
    """Check, plan, deploy, save the secrets, print the URL."""
    stack.report_other_checkout()
    require_line_ends()
    stack.settings  # noqa: B018 - wrong settings stop everything, before Docker is even looked at
    docker_daemon.require_docker(stack)
    checks.require_host(stack)
    images.require_images(stack)
    containers.require_no_foreign_containers(stack.daemon, stack.name, kept=stack.settings.networks)
    if disk := capacity.disk_problem(stack.daemon):
        say(f"warning: {disk}")
    started = time.time()
    try:
        _deploy(stack)
    except StopError:
        _show_build_log(started)
        raise
    stack.remember_checkout()
    ingress.require_authentication(stack)
    settings = stack.settings
    for name, port in settings.monitoring.addresses.items():
        say(f"{name}: http://127.0.0.1:{port}")
    say(f'\nMLflow is ready. Use it from Python: eval "$(make -s client STACK={stack.name})"')
    answer(settings.route.url)
    if way := ingress.ssh_forward_hint(stack):
        say(way)
    for problem in [*filter(None, [ingress.resolution_problem(stack)]), *stack.warnings]:
        say(f"warning: {problem}")


def _deploy(stack: Stack) -> None:
    """Deploy by the engine, and save the secrets; by a rehearsal where the engine cannot be had."""
    if engineless.asked_for():
        engineless.up(stack, "it was asked for")
        return
    try:
        engine = Engine(stack)
    except NoEngineError as error:
        engineless.up(stack, str(error))
        return
    new = engine.select()
    approved = approval(stack, "deploy", engine)
    rehearsed = engineless.owns(stack)
    handed_over = engineless.hand_over(engine, approved=bool(approved))
    if rehearsed:
        # Asked already, with the plan in sight; a second question would leave the stack down where the answer is no.
        approved = ["--yes"]
    recover(engine)
    # One that the settings do without for now, such as the backups' key, would be forgotten with its generator.
    saved = [] if new else save_credentials(engine)
    say(f"deploying {stack.name}")
    # A pull request's preview has asked them; an `up` by hand, or of a file that was changed since, has not.
    rules = policy_options(stack.settings, stack.name) if stack.name != DEV else []
    # Where nobody is asked about a plan, nobody waits for it; but a rule must stop all of a change, and not its end.
    plan = ["--skip-preview"] if approved and not rules else []
    if engine.show("up", "--refresh", *approved, *plan, *rules):
        raise StopError(
            f"the deployment of {stack.name} did not complete; the reason is above, after 'error:'\n"
            "  no data are lost, and what was not to change runs on\n"
            f"  mend the cause, or take the change back where the reason does not advise against it, "
            f"then type: make up STACK={stack.name}\n"
            "  (secrets that were generated are in the state alone until one completes)"
        )
    report_what_to_keep(engine, [*handed_over, *saved, *save_credentials(engine)])


def _show_build_log(since: float) -> None:
    """Show the end of the log of each image's build that ran and failed: Pulumi's own error has its exit code only."""
    for log in sorted(ROOT.glob("build-*.log")):
        if log.stat().st_mtime < since:
            continue
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-15:]
        # The last words of a build that succeeded, by the one builder and by the other; earlier ones are in it, too.
        if not re.search(r"Successfully tagged|naming to \S+( [\d.]+s)? done", "\n".join(lines[-3:])):
            say(f"\nan image's build ended with (all of it: {log.name})\n" + "\n".join(f"  {line}" for line in lines))
