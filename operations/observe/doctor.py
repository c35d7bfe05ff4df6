"""`make doctor`."""

import re
from collections.abc import Callable
from functools import partial

from operations.common.console import StopError, output
from operations.common.stack import Stack
from operations.engine.backend import chosen_backend
from operations.engine.cli import find_cli
from operations.engine.engine import Engine
from operations.engine.recovery import require_own_containers
from operations.host import checks, docker_daemon
from operations.host.servers import servers
from operations.observe import ingress
from operations.observe.disk import encryption_note
from operations.observe.status import status


def doctor(stack: Stack) -> None:
    """Check the settings, Docker, the engine, the host, the services and the ingress.

    Raises `StopError` with all problems.
    """
    cli = find_cli()
    output(f"pulumi: {cli or 'not installed; make up installs it into this checkout if it can be downloaded'}")
    if stack.is_engineless:
        output(f"backend: none, {stack.name} was deployed without the engine")
    else:
        output(f"backend: {chosen_backend() or 'local, in your home directory'}")
    # Without correct settings and without Docker, nothing else can be checked.
    stack.settings  # noqa: B018 - raises
    problems: list[str] = []
    engine = None
    if cli and not stack.is_engineless:
        try:
            engine = _checked_engine(stack)
        except StopError as error:
            problems = _separate(error)
    if problem := docker_daemon.docker_problem(stack.daemon):
        raise StopError("\n".join([*problems, problem]))
    if engine:
        problems += _raised(partial(require_own_containers, engine))
    of_the_services = _raised(lambda: status(stack))
    # Paused containers, for example, are a problem of the host for `make up`, and of the services for `make status`.
    problems += [
        problem for problem in checks.host_problems(stack) if _flat(problem) not in map(_flat, of_the_services)
    ]
    problems += of_the_services
    if servers(stack).running:
        problems += _raised(lambda: _check_ingress(stack))
    if problems:
        raise StopError("\n".join(problems))
    output("no problems found")


def _checked_engine(stack: Stack) -> Engine:
    """Return the engine; raise `StopError` if it cannot use its backend, or has a wrong passphrase."""
    engine = Engine(stack, install=False)
    engine.has_stack()
    return engine


def _raised(check: Callable[[], object]) -> list[str]:
    """Return the problems with which a check stops."""
    try:
        check()
    except StopError as error:
        return _separate(error)
    return []


def _separate(error: StopError) -> list[str]:
    """Return the problems of a message, each with its indented lines."""
    return re.split(r"\n(?! )", str(error))


def _flat(problem: str) -> str:
    return " ".join(problem.split())


def _check_ingress(stack: Stack) -> None:
    """Print notes on the ingress and on encryption; raise `StopError` with every problem of the ingress."""
    found = ingress.check_ingress(stack)
    for note in [*found.notes, encryption_note(stack)]:
        output(f"note: {note}")
    if found.problems:
        raise StopError("\n".join(found.problems))
