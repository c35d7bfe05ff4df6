"""Keeps one comment of a pull request, or one issue, up to date. Needs Python alone.

usage: tell.py comment PULL_REQUEST FILE... | tell.py open TITLE FILE | tell.py close TITLE
Asks GitHub at GITHUB_API_URL with GITHUB_TOKEN, about GITHUB_REPOSITORY. What it wrote it knows again by a mark in the
text, and by its author being a bot: a stranger's comment with the same mark is never changed.
"""

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PAGE = 100
LIMIT = 65_000
"""Characters; GitHub refuses more than 65,536."""


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
    """Return GitHub's answer; a refusal ends the program with its words."""
    request = urllib.request.Request(  # noqa: S310 - GitHub's address, or a test's
        f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "Content-Type": "application/json",
            "X-GitHub-Api-Version": "2022-11-28",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:300]}")
    except OSError as error:
        sys.exit(f"{method} {path}: {error}")


def ours(path: str, mark: str) -> dict[str, Any] | None:
    """Return the first of a list that this program wrote, or None."""
    page = 1
    while found := ask("GET", f"{path}{'&' if '?' in path else '?'}per_page={PAGE}&page={page}"):
        for one in found:
            if mark in (one["body"] or "") and one["user"]["type"] == "Bot":
                written: dict[str, Any] = one
                return written
        page += 1
    return None


def comment(number: int, files: list[str]) -> None:
    """Write the files into the comment of a pull request, one after the other."""
    mark = "<!-- mlflow: plans -->"
    texts = [Path(file).read_text() for file in files]
    # A plan is shorter (operations/plan.py). Whatever is not is cut, and no other for its sake.
    share = LIMIT // max(1, len(texts))
    body = "\n\n".join([mark, *(text if len(text) <= share else text[:share] + "\n\n(cut off)" for text in texts)])
    there = ours(f"issues/{number}/comments", mark)
    if there is None:
        ask("POST", f"issues/{number}/comments", {"body": body})
    elif there["body"] != body:
        ask("PATCH", f"issues/comments/{there['id']}", {"body": body})


def issue(title: str, text: str | None) -> None:
    """Open an issue with this title, or bring the open one up to date; with no text, close it."""
    mark = f"<!-- mlflow: {hashlib.sha256(title.encode()).hexdigest()[:12]} -->"
    there = ours("issues?state=open", mark)
    if text is None:
        if there:
            ask("PATCH", f"issues/{there['number']}", {"state": "closed"})
    elif there is None:
        ask("POST", "issues", {"title": title, "body": f"{mark}\n{text[:LIMIT]}"})
    else:
        ask("PATCH", f"issues/{there['number']}", {"body": f"{mark}\n{text[:LIMIT]}"})


def main(arguments: list[str]) -> None:
    """Do what was asked for; see the top of this file."""
    match arguments:
        case ["comment", number, *files] if files:
            comment(int(number), files)
        case ["open", title, file]:
            issue(title, Path(file).read_text())
        case ["close", title]:
            issue(title, None)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
