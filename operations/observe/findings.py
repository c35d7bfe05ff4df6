"""What a check found: problems and notes."""

from dataclasses import dataclass

SECURITY = "docs/security.md#what-your-traefik-needs"
TIMEOUT_SECONDS = 5


@dataclass
class Findings:
    """Problems, and notes about what is not certain to be a problem."""

    problems: list[str]
    notes: list[str]
