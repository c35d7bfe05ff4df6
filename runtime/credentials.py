"""Secrets: generated here, overridden by the stack file, passed on as the content of secret files.

A password protects a service. It can be replaced, because each service applies its secret files at every start. A data
key decrypts stored data. Only `make rotate` replaces it, together with the data. So it must outlive the services that
use it: see `DataKey`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pulumi
import pulumi_random as random

from runtime.docker_host import DockerHost
from runtime.readiness import call
from runtime.workload import SECRETS
from settings import names
from settings.names import DATA_KEY, SAVES
from settings.secrets import LENGTH, value_problem


class DataKey(pulumi.ComponentResource):
    """A data key in the state, protected from `pulumi destroy`. Its output `value` is the value in use.

    Creates the generator of the value. It is protected in every stack: the data volumes and the backups outlive a
    `pulumi destroy`, so their data keys must, too. `make destroy`, which deletes the data, removes the protection
    first. To protect the generator alone is not enough: a value in the stack file replaces the generated one, and the
    stack file may be lost.
    """

    def __init__(self, name: str, key: str, *, parent: pulumi.Resource) -> None:
        """Generate a value. Call `keep` with the value in use."""
        super().__init__(DATA_KEY, name, None, pulumi.ResourceOptions(parent=parent, protect=True))
        # In older versions of this program, the generator was a child of the component itself.
        self.generated = _generator(name, parent=self, aliases=[pulumi.Alias(parent=parent)])
        self.key = key

    def keep(self, value: pulumi.Output[str]) -> None:
        """Write the value in use into the state, encrypted."""
        self.register_outputs({"value": value})


@dataclass(frozen=True, kw_only=True)
class InUse:
    """Where the value in use of a data key is on the Docker host: in a secret file of a container."""

    platform: DockerHost
    container: str
    """The container that writes the files of a service, which exists on one host and on a cluster; or a job."""
    file: str
    as_file: Callable[[str], str] = str
    """Converts a value into the content of the file."""
    proved_by_job: bool = False
    """Whether the container is a job that succeeds only with the key of the stored data. Then a value in the stack file
    must be the same, too: nothing else refuses another one in time."""

    async def required(self, key: str, value: str, *, configured: bool) -> str:
        """Return a value; raise `RunError` if the container has another one.

        If the value is the generated one, the stack file has lost its own: `make rotate`, or a person, had replaced it.
        """
        container = names.docker_name(pulumi.get_stack(), self.container)
        found = await call(self._found, container)
        if found is None or found.decode() == self.as_file(value):
            return value
        if configured:
            raise pulumi.RunError(
                f"mlflow:{key}: is not the key of the stored data, which {container} uses; nothing was changed\n"
                "  set the old value again: docs/operations/restore.md#set-a-data-key-from-a-backup"
            )
        raise pulumi.RunError(
            f"mlflow:{key}: the stack file has lost it, and {container} uses another value than the generated one; "
            "nothing was changed\n  to write the value in use into the stack file, type: "
            + names.make_command("up", pulumi.get_stack())
        )

    def _found(self, container: str) -> bytes | None:
        """Return the file; None if there is none, or if it is that of a job that has not succeeded."""
        daemon = self.platform.daemon
        if self.proved_by_job:
            state = daemon.state(container)
            if state is None or state.status != "exited" or state.exit_code:
                return None
        return daemon.read_file(container, f"{SECRETS}/{self.file}")


def _generator(name: str, *, parent: pulumi.Resource, aliases: Sequence[pulumi.Alias] = ()) -> random.RandomPassword:
    return random.RandomPassword(
        name,
        length=LENGTH,
        special=False,
        opts=pulumi.ResourceOptions(
            parent=parent,
            aliases=[*aliases],
            # A change of any of these would generate a new password while the service still uses the old one.
            ignore_changes=["length", "special", "overrideSpecial", "keepers"],
        ),
    )


class Credential:
    """One secret with its key in the stack file. It belongs to the component that it protects."""

    key: str
    """Its key in the stack file: `pulumi config set --secret <key>`."""
    value: pulumi.Output[str]
    """The value in the stack file, or else the generated one. Secret."""
    configured: bool
    """Whether the value is in the stack file. If not, it is lost with the state."""

    def __init__(
        self,
        name: str,
        key: str,
        *,
        kind: Literal["password", "data key"] = "password",
        in_use: InUse | None = None,
        parent: pulumi.Resource,
    ) -> None:
        """Generate a value, and use the one in the stack file if there is one.

        If there is none, the value of a data key must be the one `in_use`. The generator is registered in both cases:
        otherwise the plan after the write-back would show "1 to delete".
        """
        data_key = DataKey(name, key, parent=parent) if kind == "data key" else None
        generated = data_key.generated if data_key else _generator(name, parent=parent)
        configured = pulumi.Config("mlflow").get_secret(key)
        self.key = key
        self.kind = kind
        self.configured = configured is not None
        value = generated.result if configured is None else configured.apply(self._checked)
        if in_use and (in_use.proved_by_job or not self.configured) and not pulumi.runtime.is_dry_run():
            value = value.apply(lambda found: in_use.required(key, found, configured=self.configured))
        self.value = pulumi.Output.secret(value)
        if data_key:
            data_key.keep(self.value)

    def _checked(self, value: str) -> str:
        """Return `value`. Raises `RunError`, without the value, if it is too short or could break a secret file."""
        if problem := value_problem(self.key, value):
            raise pulumi.RunError(problem)
        return value


class HasCredentials(Protocol):
    """A component with credentials."""

    @property
    def credentials(self) -> Sequence[Credential]:
        """The credentials of the component."""


def warn_of_unsaved(*components: HasCredentials | None) -> None:
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
            f"generated secrets that are only in the state: {', '.join(keys)}; type: make up STACK="
            f"{pulumi.get_stack()}, which writes them into the stack file"
            + (f". Without {', '.join(data_keys)}, data and backups cannot be decrypted" if data_keys else "")
        )


def provided_secret(key: str) -> pulumi.Output[str]:
    """Return a secret that the operator provides in the stack file; `parse_settings` refuses a stack without it."""
    return pulumi.Config("mlflow").require_secret(key)


def is_configured(key: str) -> bool:
    """Return whether the stack file has a secret under `key`."""
    return pulumi.Config("mlflow").get_secret(key) is not None
