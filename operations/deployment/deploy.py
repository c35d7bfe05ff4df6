"""Deploys a stack: checks, `pulumi up`, write-back of secrets, checks of the ingress."""

import re
import time

from offline import engineless
from operations.common.checkout import ROOT, require_line_ends
from operations.common.console import BusyError, CanceledError, StopError, output, progress
from operations.common.stack import Stack
from operations.deployment.engine_for import after_a_question, approval
from operations.deployment.fall_back import Before, fall_back
from operations.deployment.policy import policy_options
from operations.engine.cli import NoEngineError
from operations.engine.engine import Engine
from operations.engine.moments import renew_certificates, require_no_interrupted_rotation, start_counting
from operations.engine.recovery import recover, require_own_containers
from operations.engine.write_back import report_what_to_keep, write_back_secrets
from operations.host import capacity, checks, containers, docker_daemon, downtime, images, nodes
from operations.observe import hostname, ingress
from settings.stack import DEV

LOG_LINES, LOG_COLUMNS = 8, 160
"""How much is shown of the log of an image build that failed. The list of a build's packages is one line."""


def up(stack: Stack, *, approved: bool = False) -> None:
    """Check, plan, deploy, write back the secrets, print the URL. With `approved`, ask nothing, and do not plan."""
    stack.report_other_checkout()
    require_line_ends()
    stack.settings  # noqa: B018 - raises on wrong settings, before Docker is contacted
    docker_daemon.require_docker(stack)
    checks.require_host(stack)
    containers.remove_ended_operations(stack.daemon, stack.name)
    images.require_images(stack)
    nodes.require_image_on_nodes(stack)
    containers.require_no_foreign_containers(stack.daemon, stack.name, kept=stack.network_names)
    if disk := capacity.disk_problem(stack.daemon):
        progress(f"warning: {disk}")
    started, before = time.time(), Before.of(stack)
    with downtime.reported(stack):
        try:
            _deploy(stack, approved=approved)
        except BusyError:
            # The other run has perhaps stopped the server for its migration.
            raise
        except StopError:
            _show_build_log(started)
            fall_back(stack, before)
            raise
    stack.remember_checkout()
    ingress.require_authentication(stack)
    settings = stack.settings
    for name, url in settings.monitoring_urls.items():
        progress(f"{name}: {url}")
    progress(f'\nMLflow is ready. Use it from Python: eval "$(make -s client STACK={stack.name})"')
    output(settings.route.url)
    if way := hostname.ssh_forward_hint(stack):
        progress(way)
    for problem in [*filter(None, [hostname.resolution_problem(stack)]), *stack.warnings]:
        progress(f"warning: {problem}")


def _deploy(stack: Stack, *, approved: bool = False) -> None:
    """Deploy with the engine and write back the secrets; deploy without the engine if it cannot be installed."""
    if engineless.is_requested():
        engineless.up(stack, "ENGINELESS=1 is set")
        return
    try:
        engine = Engine(stack)
    except NoEngineError as error:
        engineless.up(stack, str(error))
        return
    new = not engine.has_stack()
    if not stack.is_engineless:
        require_own_containers(engine)
    if new:
        engine.create()
    require_no_interrupted_rotation(stack)
    answer = ["--yes"] if approved else approval(stack, "deploy", engine)
    renew_certificates(engine)
    start_counting(engine)
    was_engineless = stack.is_engineless
    handed_over = engineless.hand_over(engine, approved=bool(answer))
    if was_engineless:
        # Approved already, after the plan was shown. Refusing a second question would leave the stack down.
        answer = ["--yes"]
    recover(engine)
    # A secret that the settings do not use any more, such as the backup password, is lost with its generator.
    saved = [] if new else write_back_secrets(engine)
    progress(f"deploying {stack.name}")
    # The preview of a pull request checks the policies; an `up` by hand, or after a later change, has not been checked.
    rules = policy_options(stack.settings, stack.name) if stack.name != DEV else []
    # Without a question the plan is not needed. With policies it is: they must stop a change before it begins.
    plan = ["--skip-preview"] if approved or (answer and not rules) else []
    if engine.show("up", "--refresh", "--suppress-outputs", *answer, *plan, *rules):
        if engine.interrupted:
            raise CanceledError(
                f"the deployment of {stack.name} was interrupted; no data is lost\n"
                f"  to continue it, type: make up STACK={stack.name}" + _unsaved_secrets_message(engine)
            )
        raise StopError(
            f"the deployment of {stack.name} did not complete; the reason is above, after 'error:'\n"
            + after_a_question(answer)
            + "  fix the cause (or undo your change, unless the reason above forbids that), "
            f"then type: make up STACK={stack.name}" + _unsaved_secrets_message(engine)
        )
    report_what_to_keep(engine, [*handed_over, *saved, *write_back_secrets(engine)])


def _unsaved_secrets_message(engine: Engine) -> str:
    """Return which generated secrets only the state has, after a deployment that failed; empty if there are none."""
    try:
        unsaved = sorted(engine.state.generated().keys() - engine.configured)
    except StopError:
        # The backend fails, which may be the reason that was shown.
        return ""
    return f"\n  until a deployment completes, only Pulumi's state has {', '.join(unsaved)}" if unsaved else ""


def _show_build_log(since: float) -> None:
    """Print the end of the log of each failed image build: Pulumi's own error shows only the exit code."""
    for log in sorted(ROOT.glob("build-*.log")):
        if log.stat().st_mtime < since:
            continue
        lines = [line[:LOG_COLUMNS] for line in log.read_text(errors="replace").splitlines() if line.strip(" -")]
        lines = lines[-LOG_LINES:]
        # The last line of a successful build, by the classic builder or by BuildKit. Either may also occur earlier.
        if not re.search(r"Successfully tagged|naming to \S+( [\d.]+s)? done", "\n".join(lines[-3:])):
            progress(f"\nan image build failed (full log: {log.name}):\n" + "\n".join(f"  {line}" for line in lines))
