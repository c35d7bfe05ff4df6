"""Images that are built from Debian's and Python's packages, for networks that reach those and no registry.

Each stands for an official image and keeps its contract: the same paths, user, variables and signals. What it is made
of is in `offline/images/<name>/`; `make up` builds it (offline/build.py) before the program asks for it.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import names

SUITE = "trixie"
"""Debian 13, of which every image is made."""
FOLDER = Path(__file__).parent.parent / "offline" / "images"
REPOSITORY = f"{names.LOCAL_REGISTRY}/{names.PROJECT}-packages"
NAMES = tuple(sorted(folder.parent.name for folder in FOLDER.glob("*/recipe.toml")))
STANDING_FOR = {
    **{name: name for name in NAMES if name != "monitoring"},
    **dict.fromkeys(("prometheus", "alertmanager", "postgresExporter", "blackboxExporter"), "monitoring"),
}
"""The key of each image in the settings, and the recipe that stands for it."""
BUILDER = "python-build"
"""The image `python` with this host's certificates and package index. MLflow is installed on it, not run."""
READ = ("Dockerfile", "setup.sh", "wheels.txt")
"""The files of a recipe, beside `recipe.toml`."""


@dataclass(frozen=True)
class Recipe:
    """What `offline/images/<name>/recipe.toml` says."""

    version: str
    """Of what the image is for; the tag begins with it."""
    packages: Sequence[str]
    """Debian's, beside the essential ones."""


def recipe(name: str) -> Recipe:
    """Return the recipe of one of `NAMES`."""
    return Recipe(**tomllib.loads((FOLDER / name / "recipe.toml").read_text()))


def ref(name: str) -> str:
    """Return the image's name. Its tag is a version and the content of its recipe: another recipe, another image."""
    source = "python" if name == BUILDER else name
    return f"{REPOSITORY}/{name}:{recipe(source).version}-{_content(source)[:12]}"


def is_one(name: str) -> bool:
    """Whether `name` is of an image that is built from packages."""
    return name.startswith(f"{REPOSITORY}/")


def _content(name: str) -> str:
    """Return the SHA-256 of what a recipe's build reads: no comment in `recipe.toml`, no other file of the folder."""
    digest = hashlib.sha256(f"{SUITE}\0{recipe(name)}".encode())
    for path in [FOLDER / "build.sh", *(FOLDER / name / file for file in READ)]:
        if path.exists():
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
