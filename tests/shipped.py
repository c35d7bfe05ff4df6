"""Reads what the project ships: the pages, and the stack files as committed.

`make up` writes secrets and settings into those of the checkout.
"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stack_file(stack: str) -> str:
    """Return the committed `Pulumi.<stack>.yaml`."""
    name = f"Pulumi.{stack}.yaml"
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def section(title: str) -> str:
    """Return a section of the pages in docs/operations, up to the next heading."""
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "operations").glob("*.md")))
    _, found, rest = pages.partition(f"# {title}\n")
    assert found, f"no page in docs/operations has a section {title!r}"
    return rest.split("\n##", 1)[0]


def blocks(title: str, language: str = "sh") -> list[str]:
    """Return the code blocks of a section: the shell lines that a reader types."""
    found = [part.split("```", 1)[0] for part in section(title).split(f"```{language}\n")[1:]]
    assert found, f"the section {title!r} in docs/operations has no block of {language}"
    return found
