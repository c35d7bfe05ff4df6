"""`make pin`: look up the digest of every image that has none, and write it into the stack file."""

from docker.errors import APIError

from operations.common.console import StopError, output
from operations.common.stack import Stack
from operations.engine.engine import Engine
from settings import names
from settings.base import NO_DIGEST
from settings.images import Image, ImagesSettings


def pin(stack: Stack) -> None:
    """Look up digests in the registries; raise `StopError` with every image whose digest was not found.

    Only images that the stack runs are pinned. Other images keep following this project's defaults.
    """
    found: dict[str, tuple[str, str]] = {}
    unknown: list[str] = []
    for key, image in pullable(stack).items():
        if image.digest != NO_DIGEST:
            continue
        try:
            found[f"mlflow:images.{key}"] = (image.ref, digest(stack, image.ref))
        except APIError as error:
            unknown.append(f"  {image.ref}: {error.explanation}")
    if found:
        engine = Engine(stack)
        engine.select()
        for key, (ref, value) in found.items():
            # Both: with the digest alone, a later change of the tag would still run the old image.
            engine.call("config", "set", "--path", f"{key}.ref", ref)
            engine.call("config", "set", "--path", f"{key}.digest", value)
            output(f"{key}: {ref}@{value}")
    elif not unknown:
        output(f"every image of {stack.name} has a digest or is built here")
    if unknown:
        raise StopError("could not look up the digest of these images; they are unchanged:\n" + "\n".join(unknown))


def pullable(stack: Stack) -> dict[str, Image]:
    """Return the images that the stack runs and a registry may have, by their key in the settings."""
    images = {
        field.alias or name: getattr(stack.settings.images, name) for name, field in ImagesSettings.model_fields.items()
    }
    return {
        key: image
        for key, image in images.items()
        # An image of the local registry is built here: no registry has it, and its tag is a hash of its sources.
        if image in stack.settings.pulled_images and not image.ref.startswith(f"{names.LOCAL_REGISTRY}/")
    }


def digest(stack: Stack, ref: str) -> str:
    """Return the manifest digest of an image from its registry; raise `APIError` if it has none."""
    manifest = stack.daemon.api.inspect_distribution(ref)  # type: ignore[no-untyped-call]
    return str(manifest["Descriptor"]["digest"])
