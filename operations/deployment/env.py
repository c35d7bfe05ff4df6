"""`make env`: exports for plain `pulumi`."""

import shlex

from operations.common.console import output
from operations.common.stack import Stack
from operations.deployment import engine_for


def env(stack: Stack) -> None:
    """Print the exports with which plain `pulumi` uses this stack: eval "$(make -s env)"."""
    engine = engine_for.engine_of(stack)
    # Plain `pulumi config set` needs an existing stack.
    engine.select()
    for key, value in {**engine.exports, "PATH": engine.environment["PATH"]}.items():
        output(f"export {key}={shlex.quote(value)}")
