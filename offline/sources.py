"""Where Debian's and Python's packages come from on this host."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from operations.common.console import StopError
from settings import packages

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
"""The keys of pip's configuration that determine where packages come from."""


def host_sources(release: Path = Path("/etc/os-release"), apt: Path = Path("/etc/apt")) -> list[str]:
    """Return apt lines for the mirrors of this host if it runs Debian; else an empty list, for mmdebstrap's default.

    The suite is that of the images, whichever suite this host runs.
    """
    system = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
    codename = system.get("VERSION_CODENAME")
    if system.get("ID") != "debian" or not codename:
        return []
    mirrors: dict[str, str] = {}
    for path in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*"))]:
        if path.suffix in (".list", ".sources") and os.access(path, os.R_OK):
            for uri, suite in _parse_sources(path.read_text(errors="replace")):
                mirrors.setdefault(suite, uri)
    suites = {codename: packages.SUITE} | {
        f"{codename}-{pocket}": f"{packages.SUITE}-{pocket}" for pocket in ("updates", "security")
    }
    # Only entries with this release's suites: other repositories on this host use other suites and are not Debian.
    return [f"deb {mirrors[suite]} {ours} main" for suite, ours in suites.items() if suite in mirrors]


def with_keyring(line: str) -> str:
    """Return an apt line, with Debian's keyring unless it has options: Ubuntu's apt does not trust Debian's keys."""
    return line.replace("deb ", f"deb [signed-by={KEYRING}] ", 1) if "[" not in line and KEYRING.exists() else line


def _parse_sources(text: str) -> Iterator[tuple[str, str]]:
    """Yield URI and suite of every entry of apt's sources with the component `main`, in either format."""
    for line in text.splitlines():
        words = re.sub(r"\[.*?\]", "", line).split()
        if words[:1] == ["deb"] and "main" in words[3:]:
            yield words[1], words[2]
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"(?m)^(\w+):\s*(.*)$", stanza))
        if fields.get("Enabled", "yes").lower() in ("no", "false", "without", "off", "disable", "0"):  # apt's own words
            continue
        if "main" in fields.get("Components", "").split() and "deb" in fields.get("Types", "").split():
            for suite in fields.get("Suites", "").split():
                yield fields.get("URIs", "").split()[0], suite


def pip_settings() -> dict[str, str]:
    """Return this host's pip configuration; raise `StopError` if a build in a container cannot use it."""
    asked = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = {}
    # Variables take precedence over files, and are listed first.
    for line in reversed(printed.splitlines()):
        key, _, value = line.partition("=")
        found[key.rpartition(".")[2]] = str(ast.literal_eval(value)).strip().replace("\n", "\n    ")
    index = found.get("index-url", "https://index")
    proxy = get_environ_proxies(index, no_proxy=None).get("https")
    if proxy:
        found.setdefault("proxy", proxy)
    # pip uses it if its configuration has no `cert`.
    if authorities := os.environ.get("REQUESTS_CA_BUNDLE"):
        found.setdefault("cert", authorities)
    for key in ("index-url", "proxy"):
        if urlsplit(found.get(key, "")).hostname in ("127.0.0.1", "localhost", "::1"):
            raise StopError(
                f"pip's {key} is on this host's loopback address, which a build in a container cannot reach\n"
                "  set it to an address of this host that Docker containers can reach"
            )
    return found
