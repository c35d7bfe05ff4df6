"""`make prune`: delete the images that earlier versions of this project built here and that nothing uses."""

from docker.errors import APIError

from operations.common.console import StopError, confirmed, format_bytes, progress
from operations.common.stack import Stack
from settings import names, packages


def prune(stack: Stack) -> None:
    """Delete the images built here that no container and no setting of this stack uses, after approval.

    Another stack that is stopped builds its images again with its next `make up`.
    """
    found = unused_images(stack)
    if not found:
        progress("no unused images of earlier versions found")
        return
    for name, size in found.items():
        progress(f"  {name}  {format_bytes(size)}")
    question = (
        f"Delete these {len(found)} images from the Docker host ({format_bytes(sum(found.values()))})? A stopped stack "
        "builds its images again with its next make up."
    )
    if not confirmed(question):
        progress("nothing was deleted")
        return
    refused = []
    for name in found:
        try:
            stack.daemon.api.remove_image(name)
        except APIError as error:
            refused.append(f"  {name}: {error.explanation}")
    progress(f"deleted {len(found) - len(refused)} images")
    if refused:
        raise StopError("these images could not be deleted\n" + "\n".join(refused))


def unused_images(stack: Stack) -> dict[str, int]:
    """Return the unused images that this project built, as name to size in bytes."""
    settings, api = stack.settings, stack.daemon.api
    wanted = {image.name for image in settings.pulled_images}
    wanted |= {image.name for image in settings.images.built(settings.parts).values()}
    # A stopped stack's data may need a packages image of a version that this network no longer has packages for.
    wanted |= {packages.ref(name) for name in (*packages.NAMES, packages.BUILDER)}
    used = {container["ImageID"] for container in api.containers(all=True)}
    return {
        tag: image["Size"]
        for image in api.images()
        for tag in image["RepoTags"] or []
        if tag.startswith(f"{names.LOCAL_REGISTRY}/{names.PROJECT}-") and tag not in wanted and image["Id"] not in used
    }
