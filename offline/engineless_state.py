"""The generated secrets of the stacks that are deployed without the engine."""

from offline.passwords import Passwords
from operations.common.stack import Stack
from settings.names import key_of
from settings.stack import NAMESPACE


def passwords_of(stack: Stack) -> Passwords:
    """Return the file with the generated secrets of an engine-less stack."""
    return Passwords(stack.engineless_secrets)


def generated_secrets(stack: Stack) -> dict[str, str]:
    """Return the generated secrets by their config keys."""
    return {key_of(name): value for name, value in passwords_of(stack).read().items()}


def credentials(stack: Stack) -> dict[str, str]:
    """Return the generated secrets in plain text, by their keys; a configured value takes precedence."""
    written = {key.removeprefix(f"{NAMESPACE}:"): value for key, value in stack.values.items()}
    # Encrypted values were added later, and only Pulumi can read them.
    readable = {key: str(value) for key, value in written.items() if not isinstance(value, dict)}
    return {key: readable.get(key, value) for key, value in generated_secrets(stack).items()}
