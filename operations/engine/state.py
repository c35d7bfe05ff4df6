"""The state of a stack, as the backend has it: its resources, its unfinished operations, its generated secrets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from settings.names import DATA_KEY, GENERATOR, key_of


@dataclass(frozen=True)
class State:
    """A state with its secrets in plain text: never print it."""

    deployment: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, exported: str) -> Self:
        """Parse the output of `pulumi stack export --show-secrets`."""
        return cls(json.loads(exported)["deployment"] or {})

    @property
    def resources(self) -> Sequence[Mapping[str, Any]]:
        """Every resource of the last deployment, complete or not; empty if the stack was never deployed."""
        return self.deployment.get("resources") or []

    @property
    def pending(self) -> Sequence[Mapping[str, Any]]:
        """The operations that a killed run left unfinished."""
        return self.deployment.get("pending_operations") or []

    def was_decrypted_with(self, salt: str | None) -> bool:
        """Return whether the passphrase that opened this state also opens a stack file with the given salt.

        False if the state has no secret, or another salt: then its export has not shown that.
        """
        providers = self.deployment.get("secrets_providers") or {}
        same = providers.get("type") != "passphrase" or (providers.get("state") or {}).get("salt") == salt
        return same and any(
            value.get("plaintext") not in (None, "null")
            for resource in self.resources
            for value in (resource.get("outputs") or {}).values()
            if isinstance(value, dict)
        )

    def outputs(self, *types: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the outputs of all resources of some types, by type and name."""
        found: dict[str, dict[str, dict[str, Any]]] = {wanted: {} for wanted in types}
        for resource in self.resources:
            if resource["type"] in found:
                name = resource["urn"].rpartition("::")[2]
                # A resource of a killed deployment may have no outputs yet.
                found[resource["type"]][name] = {
                    key: json.loads(value["plaintext"]) if isinstance(value, dict) and "plaintext" in value else value
                    for key, value in (resource.get("outputs") or {}).items()
                }
        return found

    def generated(self) -> dict[str, str]:
        """Return every generated secret, by its key in the config.

        For a data key this is the value last used: the stack file may have had another than the generator's.
        """
        found = self.outputs(GENERATOR, DATA_KEY)
        made = {key_of(name): outputs.get("result") for name, outputs in found[GENERATOR].items()}
        used = {key_of(name): outputs.get("value") for name, outputs in found[DATA_KEY].items()}
        return {key: value for key, value in [*made.items(), *used.items()] if value}
