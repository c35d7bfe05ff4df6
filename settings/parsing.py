"""Reading the settings of a stack file, with every problem at once."""

import re
from collections.abc import Collection, Iterable, Mapping

from pydantic import ValidationError

from settings.checks import contradictions, missing_secrets
from settings.errors import InvalidSettingsError, in_words
from settings.secrets import GENERATED_KEYS, SECRET_KEYS, value_problem
from settings.stack import DEV, StackConfig


def parse_settings(
    values: Mapping[str, object],
    *,
    hidden: list[str] | None = None,
    stack: str = "dev",
    allow_plain_text: bool = False,
) -> StackConfig:
    """Validate `values`, the settings of `stack` without the prefix `mlflow:`, and return them.

    Raises `InvalidSettingsError` with all problems at once. The messages never repeat a value whose key is in
    `hidden` or sounds like a secret. Outside dev, a plain text secret is a problem, unless `allow_plain_text` is true,
    where nothing can encrypt it: in a copy of the stack file and in an engine-less deployment.
    """
    given = {key: value for key, value in values.items() if key not in SECRET_KEYS}
    problems: list[str] = []
    broken: set[str] = set()
    try:
        config = StackConfig.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [in_words(detail, hidden or []) for detail in details]
        # Valid settings are still checked against each other, so that all problems come in one run. An invalid one
        # has its default here, so further problems with it are not reported.
        broken = {f"mlflow:{'.'.join(str(part) for part in detail['loc'][:2])}" for detail in details}
        config = StackConfig.model_validate(_without(given, [detail["loc"] for detail in details]))
    problems += [
        words
        for sections, words in contradictions(config)
        if not any(_names(path, words) for path in broken) and not {f"mlflow:{name}" for name in sections} & broken
    ]
    if stack != DEV and not allow_plain_text:
        problems += [_encrypt(key, stack) for key in _plain_text_secrets(values, hidden or [])]
    problems += [
        problem
        for key in GENERATED_KEYS
        if isinstance(value := values.get(key), str) and value and (problem := value_problem(key, value))
    ]
    problems += [
        f'{words}; type: eval "$(make -s env STACK={stack})" && pulumi config set --stack {stack} --secret {key}'
        for section, key, words in missing_secrets(config, values)
        if not any(path.startswith((f"mlflow:{section}.", f"mlflow:{section}")) for path in broken)
    ]
    if problems:
        raise InvalidSettingsError(problems)
    return config


def settings_warnings(
    config: StackConfig, values: Mapping[str, object], *, hidden: Collection[str] = (), stack: str = "dev"
) -> list[str]:
    """Return warnings about permitted but risky settings: open endpoints and plain text secrets."""
    found = [
        f"{url} accepts everybody who reaches it, although mlflow:authentication is {config.authentication}; to "
        "close it, remove mlflow:server.port"
        for url, authentication in config.route.endpoints
        if authentication == "anonymous" != config.route.authentication
    ]
    found += [
        f"{url} accepts passwords without TLS, so everybody on the network path can read them; use Traefik "
        "(mlflow:traefik.mode), or publish the port on 127.0.0.1"
        for url, authentication in config.route.endpoints
        if authentication == "mlflow" and url.startswith("http:") and "//127.0.0.1" not in url
    ]
    if config.traefik.mode == "bundled" and config.route.authentication == "anonymous":
        found.append(
            f"{config.route.url} allows everybody who reaches {config.traefik.bind_address} to read, change and delete "
            "everything (mlflow:authentication: anonymous)"
        )
    return found + [_encrypt(key, stack) for key in _plain_text_secrets(values, hidden)]


def _encrypt(key: str, stack: str) -> str:
    """Return the message for a plain text secret, with the command that encrypts it."""
    return (
        f"mlflow:{key}: is plain text, readable by everybody who reads the stack file or its history; type: "
        f'eval "$(make -s env STACK={stack})" && pulumi config set --stack {stack} --secret {key}'
    )


def _without(values: Mapping[str, object], paths: Iterable[tuple[int | str, ...]]) -> dict[str, object]:
    """Return a copy of `values` without the entries at `paths`. Only the first two steps of a path count."""
    kept: dict[str, object] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for first, *rest in paths:
        section = kept.get(str(first))
        if rest and isinstance(section, dict) and str(rest[0]) in section:
            del section[str(rest[0])]
        elif not rest or not isinstance(section, dict):
            kept.pop(str(first), None)
    return kept


def _names(path: str, words: str) -> bool:
    """Return whether the message `words` mentions the setting at `path`."""
    return re.search(rf"{re.escape(path)}(?![A-Za-z])", words) is not None


def _plain_text_secrets(values: Mapping[str, object], hidden: Collection[str]) -> list[str]:
    """Return the keys of the secrets in `values` that are plain text."""
    return [key for key in SECRET_KEYS if key in values and key not in hidden and not _is_sealed(values[key])]


def _is_sealed(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}
