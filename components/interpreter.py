"""Python and Pulumi's SDK, as they run a program of seconds."""

import asyncio
import gc

import pulumi


def make_haste() -> None:
    """Spare a run of the program work that serves longer ones. Call it once, when everything is imported."""
    # What is there stays, and little of what comes is garbage: looking for it, at the end above all, is a twentieth of
    # a preview (measured: 0.2 s of 5, on a slow machine).
    gc.freeze()
    gc.disable()
    # An `up` must hear of a gate that fails at once, whatever else is still at work, and a plan passes none.
    if pulumi.runtime.is_dry_run():
        pulumi.run(_begin_registrations)


async def _begin_registrations() -> None:
    """Let what the program has registered begin before the SDK waits for it.

    The SDK waits for the registrations that have begun, one after the other. Where none has, it waits for all outputs
    of all resources, a thousand, and starts over with each that comes: 4 % of a preview (measured: 0.13 s of 3.5). In
    return it hears at once of whichever fails first, and one after the other only when the turn comes.
    """
    await asyncio.sleep(0)
