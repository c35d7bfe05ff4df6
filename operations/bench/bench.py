"""`make bench`: measures, compares, prints a table. Takes about ten minutes."""

import os
import statistics
from collections import defaultdict

from operations.bench import measure, plain, proxied
from operations.bench.plain import SetUp
from operations.common.checkout import ROOT
from operations.common.console import StopError, output, progress
from operations.common.stack import Stack
from operations.deployment import end, up
from operations.deployment.engine_for import leftovers
from operations.deployment.init import init
from settings import names

NAME = "bench"
ROUNDS = 7
"""Pairs of each measurement; the table shows their median."""
PORTS = ("5590", 5591)
UNITS = {"ready": "s", "memory at rest": "MB", "CPU at rest": "% of a core"}


def bench(_stack: Stack) -> None:
    """Deploy a stack `bench` and a plain set-up beside it, measure both in turns, print a table, delete both.

    Raises `StopError` if a stack of this name exists.
    """
    file = ROOT / f"Pulumi.{NAME}.yaml"
    if file.exists():
        raise StopError(
            f"{file.name} exists already\n  type: make destroy STACK={NAME} CONFIRM={NAME} && rm {file.name}"
        )
    os.environ |= {"PORT": PORTS[0], "YES": "1", "CONFIRM": NAME, "STACK": NAME}
    init(NAME)
    ours = Stack(NAME)
    try:
        up.up(ours)
        other = plain.start(ours, PORTS[1])
        measure.wait_until_ready(other)
        output(table(measured(ours, other)))
        output(table(measured_through(proxied.deploy(ours), other)))
    except BaseException:
        try:
            _delete(ours)
        except StopError as error:
            # Not instead of the reason why the measurement failed.
            progress(str(error))
        raise
    _delete(ours)


def _delete(stack: Stack) -> None:
    """Delete both set-ups, and the stack's file unless something of the stack is left: `make destroy` needs it."""
    plain.remove(stack.daemon)
    try:
        end.destroy(stack)
    finally:
        if not leftovers(stack):
            stack.path.unlink()


def measured(stack: Stack, other: SetUp) -> dict[str, dict[str, list[float]]]:
    """Return every measurement of both set-ups: name of the measurement, to name of the set-up, to values."""
    services = ("server", "postgres", stack.settings.object_store.kind)
    own = SetUp(
        "this stack",
        stack.settings.route.url,
        names.docker_name(stack.name, "server"),
        tuple(names.docker_name(stack.name, service) for service in services),
    )
    daemon = stack.daemon
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}")
        # In turns, so that what else the machine does meets both.
        for setup in (own, other) if number % 2 else (other, own):
            found["ready"][setup.name].append(measure.ready_seconds(daemon, setup))
            measure.wait_until_calm(daemon, setup)
            found["memory at rest"][setup.name].append(measure.memory_mb(daemon, setup))
            for name, value in measure.latencies(setup).items():
                found[name][setup.name].append(value)
            for name, value in measure.artifacts(setup).items():
                found[name][setup.name].append(value)
    for name, percent in measure.idle_percents(daemon, own, other).items():
        found["CPU at rest"][name].append(percent)
    return found


def measured_through(traefik: SetUp, other: SetUp) -> dict[str, dict[str, list[float]]]:
    """Return the throughput of artifacts through Traefik, beside that of the plain set-up, which has no proxy."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    measure.wait_until_ready(traefik)
    for number in range(ROUNDS):
        progress(f"through Traefik: round {number + 1} of {ROUNDS}")
        for setup in (traefik, other) if number % 2 else (other, traefik):
            for name, value in measure.artifacts(setup).items():
                found[f"{name} through Traefik"][setup.name].append(value)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians as a Markdown table, with the factor by which this stack is better."""
    lines = ["| | this stack | plain set-up | better by |", "| --- | --- | --- | --- |"]
    for name, values in found.items():
        unit = UNITS.get(name, "MB/s" if name.startswith(("upload", "download")) else "ms")
        own, other = (statistics.median(values[setup]) for setup in ("this stack", "plain"))
        factor = own / other if unit == "MB/s" else other / own
        lines.append(f"| {name} | {_number(own)} {unit} | {_number(other)} {unit} | {factor:.1f} x |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits
