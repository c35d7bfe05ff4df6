"""`make pin`: look up the digest of every image that has none, and write it into the stack's file."""

from docker.errors import APIError

from operations.common.console import StopError, answer
from operations.common.stack import Stack
from operations.engine.engine import Engine
from settings import names
from settings.base import NO_DIGEST
from settings.images import Image, ImagesSettings


def pin(stack: Stack) -> None:
    """Ask the registries; raise `StopError` naming every image that they do not know. Nothing is made up.

    Only of what the stack runs: another one, once it is wanted, is to be the default of that day.
    """
    found: dict[str, tuple[str, str]] = {}
    unknown: list[str] = []
    for name, field in ImagesSettings.model_fields.items():
        image = getattr(stack.settings.images, name)
        if not isinstance(image, Image) or image not in stack.settings.pulled_images or image.digest != NO_DIGEST:
            continue
        if image.ref.startswith(f"{names.LOCAL_REGISTRY}/"):
            # Built here: no registry has it, and its tag is the hash of what it is made of.
            continue
        try:
            found[f"mlflow:images.{field.alias}"] = (image.ref, digest(stack, image.ref))
        except APIError as error:
            unknown.append(f"  {image.ref}: {error.explanation}")
    if found:
        engine = Engine(stack)
        engine.select()
        for key, (ref, value) in found.items():
            # Both: a digest that outlives its tag would go on running the old image under the new name.
            engine.call("config", "set", "--path", f"{key}.ref", ref)
            engine.call("config", "set", "--path", f"{key}.digest", value)
            answer(f"{key}: {ref}@{value}")
    elif not unknown:
        answer("every image that it runs has a digest, or is built here")
    if unknown:
        raise StopError("these have no digest that could be looked up, and stay as they are:\n" + "\n".join(unknown))


def digest(stack: Stack, ref: str) -> str:
    """Return the manifest digest of an image in its registry; raise `APIError` if there is none."""
    manifest = stack.daemon.api.inspect_distribution(ref)  # type: ignore[no-untyped-call]
    return str(manifest["Descriptor"]["digest"])
