"""How the program ends when the engine cancels it: because a resource failed, or because a person pressed Ctrl-C."""

import os
import signal

import pulumi
from pulumi.runtime.proto.engine_pb2_grpc import EngineStub

ALREADY_REPORTED = 32
"""The exit code after which the engine adds no message of its own: the reason is shown already.

Source: `pythonProcessExitedAfterShowingUserActionableMessage` in Pulumi's language host for Python.
"""


def end_quietly_when_canceled() -> None:
    """End without a traceback when the engine sends SIGINT. Does nothing without the engine, as in a test.

    Otherwise Python raises `KeyboardInterrupt` in Pulumi's own event loop, and the 26 lines of its traceback hide the
    error of the resource. Nothing is lost: the engine ignores what the program would still register.
    """
    if isinstance(pulumi.runtime.settings.get_engine(), EngineStub):
        # `sys.exit` would wait for threads that wait for answers of the engine.
        signal.signal(signal.SIGINT, lambda *_: os._exit(ALREADY_REPORTED))
