"""`make doctor`."""

from offline import engineless
from operations.common.console import StopError, answer
from operations.common.stack import Stack
from operations.engine.backend import chosen_backend
from operations.engine.cli import find_cli
from operations.engine.engine import Engine
from operations.host import checks, docker_daemon
from operations.observe import ingress
from operations.observe.status import status


def doctor(stack: Stack) -> None:
    """Explain what is wrong, and what to type: the settings, then Docker, then the host, then the deployment."""
    cli = find_cli()
    answer(f"pulumi: {cli or 'not installed; make up installs it into this checkout, where it can be had'}")
    if engineless.owns(stack):
        answer(f"backend: none, {stack.name} was deployed by a rehearsal")
    else:
        answer(f"backend: {chosen_backend() or 'local, in your home'}")
    # Each is of use only where those before it found nothing.
    stack.settings  # noqa: B018 - raises
    if cli and not engineless.owns(stack):
        # It asks the backend, and the passphrase with it.
        Engine(stack, install=False).knows_stack()
    docker_daemon.require_docker_as_it_is(stack)
    checks.require_host(stack)
    status(stack)
    found = ingress.look(stack)
    for note in found.notes:
        answer(f"note: {note}")
    if found.problems:
        raise StopError("\n".join(found.problems))
    answer("nothing is wrong")
