"""Every secret: generated here, overridden by the stack's config, handed on as the content of a file.

A password guards a service. Any new value will do, since the services follow their files at every start. A data key
opens data at rest. Only the old value will do, so it outlives whatever uses it: see `DataKey`.
"""

import base64
import os
import re
from collections.abc import Sequence
from typing import Literal, Protocol

import pulumi
import pulumi_random as random

from settings.names import DATA_KEY, SAVES
from settings.secrets import ACCEPTED, ACCEPTED_WORDS, FERNET_KEY_LENGTH, LENGTH


class DataKey(pulumi.ComponentResource):
    """A data key in the state, where `pulumi destroy` does not delete it. Its output `value` is the one in use.

    Protected in every stack: the data volumes and the backups outlive a `pulumi destroy`, and so must what opens them.
    `make destroy`, which deletes the data, removes the protection first. The generator alone would not do: where the
    stack's file has another value, that is the one in use, and the file may be lost.
    """

    def __init__(self, name: str, key: str, *, parent: pulumi.Resource) -> None:
        """Generate a value; `keep` the one that is in use."""
        super().__init__(DATA_KEY, name, None, pulumi.ResourceOptions(parent=parent, protect=True))
        # Before there were data keys, a generator was a child of the component that it guards.
        self.generated = _generator(name, parent=self, aliases=[pulumi.Alias(parent=parent)])
        self.key = key

    def keep(self, value: pulumi.Output[str]) -> None:
        """Write the value that is in use into the state, encrypted."""
        self.register_outputs({"value": value})


def _generator(name: str, *, parent: pulumi.Resource, aliases: Sequence[pulumi.Alias] = ()) -> random.RandomPassword:
    return random.RandomPassword(
        name,
        length=LENGTH,
        special=False,
        opts=pulumi.ResourceOptions(
            parent=parent,
            aliases=[*aliases],
            # Any of these would make a new password behind the back of the service that has the old one.
            ignore_changes=["length", "special", "overrideSpecial", "keepers"],
        ),
    )


class Credential:
    """One secret value, under one name in the stack's config. Belongs to the component that it guards."""

    key: str
    """Its name in the config: `pulumi config set --secret <key>`."""
    value: pulumi.Output[str]
    """The configured value, or else the generated one. Always secret."""
    configured: bool
    """Whether the value came from the config. If not, losing the state would lose it."""

    def __init__(
        self,
        name: str,
        key: str,
        *,
        kind: Literal["password", "data key"] = "password",
        parent: pulumi.Resource,
    ) -> None:
        """Generate a value, and prefer the configured one.

        The generator is registered even where the config has a value: a resource that comes and goes with a setting
        would leave "1 to delete" in the plan that follows the write-back.
        """
        data_key = DataKey(name, key, parent=parent) if kind == "data key" else None
        generated = data_key.generated if data_key else _generator(name, parent=parent)
        configured = pulumi.Config("mlflow").get_secret(key)
        self.key = key
        self.kind = kind
        self.configured = configured is not None
        self.value = pulumi.Output.secret(generated.result if configured is None else configured.apply(self._checked))
        if data_key:
            data_key.keep(self.value)

    def _checked(self, value: str) -> str:
        """Refuse a value that somebody brought and that would break the file that it goes into. Never repeats it."""
        if re.fullmatch(ACCEPTED, value) is None:
            raise pulumi.RunError(f"mlflow:{self.key}: must be {ACCEPTED_WORDS}")
        return value


class Guarded(Protocol):
    """A component with credentials."""

    @property
    def credentials(self) -> Sequence[Credential]:
        """The credentials of the component."""


def warn_of_unsaved(*components: Guarded | None) -> None:
    """Warn of generated secrets that are only in the state, with the command that saves them.

    None stands for a component that the settings turn off. A plan warns of nothing: it generates no secret.
    """
    if pulumi.runtime.is_dry_run() or os.environ.get(SAVES):
        return
    credentials = [credential for component in components if component for credential in component.credentials]
    keys = [credential.key for credential in credentials if not credential.configured]
    if keys:
        data_keys = [
            credential.key for credential in credentials if credential.kind == "data key" and credential.key in keys
        ]
        pulumi.log.warn(
            f"generated secrets that are in the state alone: {', '.join(keys)}; type: make up STACK="
            f"{pulumi.get_stack()}, which writes them into the stack's file"
            + (f". Without {', '.join(data_keys)}, data and backups cannot be opened" if data_keys else "")
        )


def provided_secret(key: str) -> pulumi.Output[str]:
    """Return a secret that the operator provides in the stack file; `parse_settings` refuses a stack without it."""
    return pulumi.Config("mlflow").require_secret(key)


def is_configured(key: str) -> bool:
    """Return whether the stack file has a secret under `key`."""
    return pulumi.Config("mlflow").get_secret(key) is not None


def fernet_key(value: str) -> str:
    """Return the Fernet key of a 32-character secret: its bytes in URL-safe base64. A key of 44 characters is one."""
    if len(value) == FERNET_KEY_LENGTH:
        return value
    if len(value) != LENGTH:
        raise pulumi.RunError(f"mlflow:webhookEncryptionKey: must have {LENGTH} characters, or {FERNET_KEY_LENGTH}")
    return base64.urlsafe_b64encode(value.encode()).decode()
