"""The settings of the stack that Pulumi is updating, from its stack file."""

import json
import os

import pulumi

from settings.errors import InvalidSettingsError
from settings.names import nothing_encrypts
from settings.parsing import parse_settings, settings_warnings
from settings.secrets import COMPLETES, NEXT_KEYS, SECRET_KEYS, interrupted_message
from settings.stack import NAMESPACE, StackConfig


def load_settings() -> StackConfig:
    """Return the settings of the current stack. Raises `RunError` with all problems at once."""
    values = {**pulumi.runtime.config.get_config_env(), **pulumi.runtime.config.CONFIG.get()}
    prefix = f"{NAMESPACE}:"
    # The public API has no list of the secret keys: it answers for one key at a time.
    hidden = [key.removeprefix(prefix) for key in pulumi.runtime.config._SECRET_KEYS.get()]  # noqa: SLF001
    given = {
        # The checks need to know that a secret is set, not its value.
        name: "" if name in SECRET_KEYS else decoded(value)
        for key, value in values.items()
        if key.startswith(prefix)
        for name in [key.removeprefix(prefix)]
    }
    stack = pulumi.get_stack()
    interrupted = sorted(set(given) & set(NEXT_KEYS.values()))
    if interrupted and not os.environ.get(COMPLETES):
        raise pulumi.RunError(interrupted_message(interrupted, stack))
    try:
        config = parse_settings(given, hidden=hidden, stack=stack, allow_plain_text=nothing_encrypts())
    except InvalidSettingsError as error:
        raise pulumi.RunError(str(error)) from None
    for words in settings_warnings(config, given, hidden=hidden, stack=stack):
        pulumi.log.warn(words)
    return config


def decoded(value: object) -> object:
    """Decode a value as Pulumi passes it: a section is JSON, any other value is its text in the stack file."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value
