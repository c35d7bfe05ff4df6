"""The labels that every container carries."""

import hashlib

import pulumi
import pulumi_docker as docker

from settings import names


def standard_labels(stack: str, service: str, role: str) -> list[docker.ContainerLabelArgsDict]:
    """Return the labels that every container carries: stack, service and role."""
    return [
        {"label": names.STACK_LABEL, "value": stack},
        {"label": names.SERVICE_LABEL, "value": service},
        {"label": names.ROLE_LABEL, "value": role},
    ]


def label(name: str, value: pulumi.Input[str]) -> docker.ContainerLabelArgsDict:
    """Return one label as the provider takes it."""
    return {"label": name, "value": value}


def short_digest(text: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
