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
    for name, field in ImagesSettings.model_fields.items():
        image = getattr(stack.settings.images, name)
        if not isinstance(image, Image) or image not in stack.settings.pulled_images or image.digest != NO_DIGEST:
            continue
        if image.ref.startswith(f"{names.LOCAL_REGISTRY}/"):
            # Built here: no registry has it, and its tag is a hash of its sources.
            continue
        try:
            found[f"mlflow:images.{field.alias}"] = (image.ref, digest(stack, image.ref))
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


def digest(stack: Stack, ref: str) -> str:
    """Return the manifest digest of an image from its registry; raise `APIError` if it has none."""
    manifest = stack.daemon.api.inspect_distribution(ref)  # type: ignore[no-untyped-call]
    return str(manifest["Descriptor"]["digest"])
