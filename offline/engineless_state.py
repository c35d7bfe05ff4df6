"""Which stacks are deployed without the engine, and their generated secrets."""

from offline.passwords import Passwords
from operations.common.checkout import state_home
from operations.common.stack import Stack
from settings.names import key_of
from settings.stack import NAMESPACE


def is_engineless(stack: Stack) -> bool:
    """Return whether this stack was last deployed without the engine."""
    return passwords_of(stack).path.exists()


def passwords_of(stack: Stack) -> Passwords:
    """Return the file with the generated secrets of an engine-less stack."""
    return Passwords(state_home() / "rehearsal" / f"{stack.name}.json")


def generated_secrets(stack: Stack) -> dict[str, str]:
    """Return the generated secrets by their config keys."""
    return {key_of(name): value for name, value in passwords_of(stack).read().items()}


def credentials(stack: Stack) -> dict[str, str]:
    """Return every secret in plain text, by its key: the configured one, else the generated one."""
    written = {key.removeprefix(f"{NAMESPACE}:"): value for key, value in stack.values.items()}
    # Encrypted values were added later, and only Pulumi can read them.
    readable = {key: str(value) for key, value in written.items() if not isinstance(value, dict)}
    return {key: readable.get(key, value) for key, value in generated_secrets(stack).items()}
