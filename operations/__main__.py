"""`python -m operations VERB`: the entry point of `make VERB`. STACK names the stack, dev by default."""

import os
import sys

from operations.common.console import StopError, flag, make, say
from operations.common.stack import Stack
from operations.data import backup, gc, restore
from operations.deployment import end, pin, preview, prune, up
from operations.observe import access, doctor, logs, secrets, status
from runtime.daemon import UNREACHABLE

VERBS = {
    "up": up.up,
    "preview": preview.preview,
    "drift": preview.drift,
    "down": end.down,
    "destroy": end.destroy,
    "status": status.status,
    "logs": logs.logs,
    "open": access.open_browser,
    "images": access.images,
    "url": access.url,
    "env": access.env,
    "client": access.client,
    "password": secrets.password,
    "scrape": secrets.scrape,
    "doctor": doctor.doctor,
    "pin": pin.pin,
    "prune": prune.prune,
    "backup": backup.backup,
    "backups": backup.backups,
    "restore": restore.restore,
    "drill": backup.drill,
    "gc": gc.gc,
}

INTERRUPTED = {
    **dict.fromkeys(("up", "down", "destroy"), "the next run continues from here"),
    **dict.fromkeys(("backup", "drill", "gc"), "it continues in its container, and later commands wait for it"),
    "restore": "the database is unchanged unless the output above says otherwise; run the same command again",
}
"""The state after an interruption of each verb. All other verbs only read."""
TRIES = {"restore"}
"""The verbs that support DRY_RUN=1. For `up`, `preview` is the dry run."""


def main(arguments: list[str]) -> int:
    """Run one verb and return the exit code: 0 success, 1 failure, 2 unknown verb, 130 interrupted."""
    if len(arguments) != 1 or arguments[0] not in VERBS:
        say(f"usage: python -m operations {'|'.join(VERBS)}")
        return 2
    (verb,) = arguments
    try:
        _refuse_dry_run(verb)
        VERBS[verb](Stack(os.environ.get("STACK") or "dev"))
    except StopError as error:
        say(f"\nerror: {error}")
        return 1
    except BrokenPipeError:
        # `make status | head`. Python flushes stdout when it exits, which would fail the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UNREACHABLE as error:
        # An error of a file has a file name; an error of Docker's socket has none.
        mine = isinstance(error, OSError) and error.filename is not None
        say(f"\nerror: {error}" if mine else f"\nerror: Docker: {error}\n  type: {make('doctor')}")
        return 1
    except KeyboardInterrupt:
        say(f"\ninterrupted; {INTERRUPTED.get(verb, 'nothing was left incomplete')}")
        return 130
    return 0


def _refuse_dry_run(verb: str) -> None:
    """Raise `StopError` if DRY_RUN=1 is set for a verb that changes something and has no dry run."""
    if verb in {*INTERRUPTED, "pin"} - TRIES and flag("DRY_RUN"):
        instead = f"\n  to see what it would change, type: {make('preview')}" if verb == "up" else ""
        raise StopError(f"make {verb} does not support DRY_RUN; nothing was changed{instead}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
