"""Old images: what earlier versions of this project built here, and nothing runs any more."""

from docker.errors import APIError

from operations.common.console import StopError, amount, confirmed, say
from operations.common.stack import Stack
from settings import names, packages


def prune(stack: Stack) -> None:
    """Delete the images that were built here and that no container, and no setting of this stack, has a use for.

    Asks first. Another stack that is stopped builds its own again with its next `make up`.
    """
    found = unused(stack)
    if not found:
        say("there is no image of an earlier version that nothing uses")
        return
    for name, size in found.items():
        say(f"  {name}  {amount(size)}")
    question = (
        f"Delete these {len(found)} images of the Docker host ({amount(sum(found.values()))})? A stack that is stopped "
        "builds its own again with its next make up."
    )
    if not confirmed(question):
        say("nothing was deleted")
        return
    refused = []
    for name in found:
        try:
            stack.daemon.api.remove_image(name)
        except APIError as error:
            refused.append(f"  {name}: {error.explanation}")
    say(f"deleted {len(found) - len(refused)} images")
    if refused:
        raise StopError("these could not be deleted\n" + "\n".join(refused))


def unused(stack: Stack) -> dict[str, int]:
    """Return the images of ours that nothing uses, by name, and their sizes in bytes."""
    settings, api = stack.settings, stack.daemon.api
    wanted = {image.name for image in settings.pulled_images}
    wanted |= {image.name for image in settings.images.built(settings.parts).values()}
    # Those from packages may be what a stopped stack's data are of, on a network that has them no more.
    wanted |= {packages.ref(name) for name in (*packages.NAMES, packages.BUILDER)}
    used = {container["ImageID"] for container in api.containers(all=True)}
    return {
        tag: image["Size"]
        for image in api.images()
        for tag in image["RepoTags"] or []
        if tag.startswith(f"{names.LOCAL_REGISTRY}/{names.PROJECT}-") and tag not in wanted and image["Id"] not in used
    }
