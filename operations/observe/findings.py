"""What a check found: problems and notes."""

from dataclasses import dataclass

SECURITY = "docs/security.md#what-your-traefik-needs"
TIMEOUT_SECONDS = 5


@dataclass
class Found:
    """What is wrong, and what somebody should know."""

    problems: list[str]
    notes: list[str]
