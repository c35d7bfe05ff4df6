"""Creates or updates one comment of a pull request, or one issue. Needs only Python's standard library.

usage: tell.py comment PULL_REQUEST FILE... | tell.py open TITLE FILE | tell.py close TITLE
Uses the API at GITHUB_API_URL with GITHUB_TOKEN, for GITHUB_REPOSITORY. It recognizes its own texts by a marker and by
the author's type, which must be a bot: it never changes a user's comment with the same marker.
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
"""Maximum length in characters. GitHub refuses more than 65,536."""


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
    """Return GitHub's response as JSON; exit with the error message if the request fails."""
    request = urllib.request.Request(  # noqa: S310 - GitHub's URL, or a test's
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
    """Return the first entry of the list at `path` that this program wrote, or None."""
    page = 1
    while found := ask("GET", f"{path}{'&' if '?' in path else '?'}per_page={PAGE}&page={page}"):
        for one in found:
            if mark in (one["body"] or "") and one["user"]["type"] == "Bot":
                written: dict[str, Any] = one
                return written
        page += 1
    return None


def comment(number: int, files: list[str]) -> None:
    """Create or update the comment of a pull request with the contents of the files, in their order."""
    mark = "<!-- mlflow: plans -->"
    texts = [Path(file).read_text() for file in files]
    # operations/engine/plan.py limits a plan. A file that is longer than its share is cut, so the others stay complete.
    share = LIMIT // max(1, len(texts))
    body = "\n\n".join([mark, *(text if len(text) <= share else text[:share] + "\n\n(cut off)" for text in texts)])
    there = ours(f"issues/{number}/comments", mark)
    if there is None:
        ask("POST", f"issues/{number}/comments", {"body": body})
    elif there["body"] != body:
        ask("PATCH", f"issues/comments/{there['id']}", {"body": body})


def issue(title: str, text: str | None) -> None:
    """Open an issue with this title, or update the open one; close it if `text` is None."""
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
    """Run the command in `arguments`; exit with the usage if it is unknown."""
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
