"""Packages images: built from Debian's and Python's packages, for networks without an image registry.

Each one replaces an official image and is compatible with it: the same paths, user, environment variables and signals.
Its recipe is in `offline/images/<name>/`; `make up` builds it (offline/build.py) before the program runs.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import names

SUITE = "trixie"
"""Debian 13, the base of every packages image."""
FOLDER = Path(__file__).parent.parent / "offline" / "images"
REPOSITORY = f"{names.LOCAL_REGISTRY}/{names.PROJECT}-packages"
NAMES = tuple(sorted(folder.parent.name for folder in FOLDER.glob("*/recipe.toml")))
RECIPE_BY_IMAGE = {
    **{name: name for name in NAMES if name != "monitoring"},
    **dict.fromkeys(("prometheus", "alertmanager", "postgresExporter", "blackboxExporter"), "monitoring"),
}
"""Key of each image in the settings, and the recipe that replaces it."""
BUILDER = "python-build"
"""The image `python` with this host's certificates and package index. MLflow is installed on it, but does not run on
it."""
RECIPE_FILES = ("Dockerfile", "setup.sh", "wheels.txt")
"""The files of a recipe, beside `recipe.toml`."""


@dataclass(frozen=True)
class Recipe:
    """The content of `offline/images/<name>/recipe.toml`."""

    version: str
    """Version of the software in the image. The tag begins with it."""
    packages: Sequence[str]
    """Debian packages, in addition to the essential ones."""


def recipe(name: str) -> Recipe:
    """Return the recipe of one of `NAMES`."""
    return Recipe(**tomllib.loads((FOLDER / name / "recipe.toml").read_text()))


def ref(name: str) -> str:
    """Return the image's name. The tag is the version and a hash of the recipe, so a changed recipe is a new image."""
    source = "python" if name == BUILDER else name
    return f"{REPOSITORY}/{name}:{recipe(source).version}-{_content(source)[:12]}"


def is_packages_image(name: str) -> bool:
    """Return whether `name` is the name of a packages image."""
    return name.startswith(f"{REPOSITORY}/")


def _content(name: str) -> str:
    """Return the SHA-256 of what a build reads, without comments in `recipe.toml` and other files in the folder."""
    digest = hashlib.sha256(f"{SUITE}\0{recipe(name)}".encode())
    for path in [FOLDER / "build.sh", *(FOLDER / name / file for file in RECIPE_FILES)]:
        if path.exists():
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
