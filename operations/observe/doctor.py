"""`make doctor`."""

from operations.common.console import StopError, output
from operations.common.stack import Stack
from operations.engine.backend import chosen_backend
from operations.engine.cli import find_cli
from operations.engine.engine import Engine
from operations.host import checks, docker_daemon
from operations.observe import ingress
from operations.observe.disk import encryption_note
from operations.observe.status import status


def doctor(stack: Stack) -> None:
    """Check the settings, then Docker, the host and the deployment; report problems and what to type."""
    cli = find_cli()
    output(f"pulumi: {cli or 'not installed; make up installs it into this checkout if it can be downloaded'}")
    if stack.is_engineless:
        output(f"backend: none, {stack.name} was deployed without the engine")
    else:
        output(f"backend: {chosen_backend() or 'local, in your home directory'}")
    # Each check makes sense only if those before it found no problem.
    stack.settings  # noqa: B018 - raises
    if cli and not stack.is_engineless:
        # Checks the backend and the passphrase.
        Engine(stack, install=False).has_stack()
    docker_daemon.require_running_docker(stack)
    checks.require_host(stack)
    status(stack)
    found = ingress.check_ingress(stack)
    for note in [*found.notes, encryption_note(stack)]:
        output(f"note: {note}")
    if found.problems:
        raise StopError("\n".join(found.problems))
    output("no problems found")
