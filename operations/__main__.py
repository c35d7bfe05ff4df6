"""`python -m operations VERB`: the program behind `make VERB`. STACK names the stack, dev by default."""

import importlib
import os
import sys

from operations.common.checkout import state_home
from operations.common.console import StopError, flag, go_on_without_reader, make, progress
from operations.common.lock import exclusive
from operations.common.signals import end_gracefully
from operations.common.stack import Stack

VERBS = {
    "init": "deployment.init:init",
    "up": "deployment.up:up",
    "preview": "deployment.preview:preview",
    "drift": "deployment.preview:drift",
    "down": "deployment.end:down",
    "destroy": "deployment.end:destroy",
    "status": "observe.status:status",
    "logs": "observe.logs:logs",
    "open": "observe.access:open_browser",
    "images": "observe.access:images",
    "url": "observe.access:url",
    "env": "deployment.env:env",
    "client": "observe.access:client",
    "password": "observe.secrets:password",
    "scrape": "observe.secrets:scrape",
    "authority": "observe.authority:authority",
    "doctor": "observe.doctor:doctor",
    "pin": "deployment.pin:pin",
    "prune": "deployment.prune:prune",
    "backup": "data.backup:backup",
    "backups": "data.backup:backups",
    "restore": "data.restore:restore",
    "drill": "data.backup:drill",
    "gc": "data.gc:gc",
    "export": "data.export:export",
    "import": "importing.importing:import_",
    "upgrade": "upgrading.upgrade:upgrade",
    "upgrade-postgres": "data.upgrade_postgres:upgrade_postgres",
    "encrypt": "data.encrypt:encrypt",
    "rotate": "rotation.rotate:rotate",
    "bench": "bench.bench:bench",
}
"""The module and the function of each verb. Only the module of the verb is imported, so that short verbs are fast."""

INTERRUPTED_MESSAGES = {
    **dict.fromkeys(("up", "down", "destroy"), "the next run continues from here"),
    **dict.fromkeys(
        ("backup", "drill", "gc"), "the operation continues in its container, and later commands wait for it"
    ),
    "upgrade-postgres": "the server may be stopped; run the same command again: it completes the upgrade",
    "encrypt": "the server may be stopped; run the same command again: it continues, and starts the server",
    "rotate": "run the same command again: it completes the rotation",
    "import": "the old deployment is unchanged; the server may be stopped: run the same command again: it continues",
    "export": "this stack is unchanged; its server may be stopped: to start it, type make up",
    "restore": "the database is unchanged unless the output above says otherwise; run the same command again",
}
"""The state after an interruption of each verb that has one. Other verbs leave nothing incomplete."""
CHANGES = {*INTERRUPTED_MESSAGES, "init", "pin", "prune", "bench", "upgrade"}
"""The verbs that change something. `env` and `preview` create the stack in the backend at most."""
SUPPORT_DRY_RUN = {"upgrade", "upgrade-postgres", "restore", "import", "export", "encrypt", "rotate"}
"""The verbs that support DRY_RUN=1. For `up`, `preview` is the dry run."""
ALONE = {*INTERRUPTED_MESSAGES, "pin", "upgrade"} - {"backup", "drill", "gc"}
"""The verbs of which one at a time may work on a stack, also as a dry run, which uses the same containers. Those of the
backup container have an exclusive lock of their own."""


def main(arguments: list[str]) -> int:
    """Run one verb and return the exit code: 0 success, 1 failure, 2 unknown verb, 130 interrupted."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        progress(f"usage: python -m operations {'|'.join(VERBS)}")
        return 2
    (verb,) = arguments
    try:
        _refuse_dry_run(verb)
        _run(verb, os.environ.get("STACK") or "dev")
    except StopError as error:
        progress(f"\nerror: {error}")
        return 1
    except BrokenPipeError:
        # `make status | head`. Python flushes stdout when it exits, which would fail the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        progress(f"\ninterrupted; {INTERRUPTED_MESSAGES.get(verb, 'nothing was left incomplete')}")
        return 130
    except Exception as error:  # noqa: BLE001 - any other is raised again
        _report_unreachable(error)
        return 1
    return 0


def _run(verb: str, stack: str) -> None:
    """Import the module of a verb, and run the verb for `stack`."""
    module, _, function = VERBS[verb].partition(":")
    run = getattr(importlib.import_module(f"operations.{module}"), function)
    if verb == "init":
        # It creates the stack file that every other verb needs.
        run(stack)
        return
    chosen = Stack(stack)
    if verb in CHANGES:
        # Before it has begun to change something.
        end_gracefully()
        go_on_without_reader()
    if verb not in ALONE:
        run(chosen)
        return
    held = f"{stack} is being changed by another run: make {{}}\n  nothing was changed; wait for it, then type again"
    with exclusive(state_home() / "locks" / stack, held, owner=f"{verb}, process {os.getpid()}"):
        run(chosen)


def _report_unreachable(error: Exception) -> None:
    """Print that a file or the Docker daemon cannot be reached; raise `error` again if it is another one."""
    # Imported late: Docker's client takes half of the time of a short verb.
    from runtime.daemon import UNREACHABLE_ERRORS  # noqa: PLC0415

    if not isinstance(error, UNREACHABLE_ERRORS):
        raise error
    # An error of a file has a file name; an error of Docker's socket has none.
    mine = isinstance(error, OSError) and error.filename is not None
    progress(f"\nerror: {error}" if mine else f"\nerror: Docker: {error}\n  type: {make('doctor')}")


def _refuse_dry_run(verb: str) -> None:
    """Raise `StopError` if DRY_RUN=1 is set for a verb that changes something and has no dry run."""
    if verb in CHANGES - SUPPORT_DRY_RUN and flag("DRY_RUN"):
        instead = f"\n  to see what it would change, type: {make('preview')}" if verb == "up" else ""
        raise StopError(f"make {verb} does not support DRY_RUN; nothing was changed{instead}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
