"""When the policy pack is checked, and with which configuration."""

import os
from pathlib import Path

from operations.common.checkout import ROOT
from operations.common.console import StopError
from settings.stack import DEV, StackConfig

POLICY_PAGE = "docs/adr/0013-policy.md"


def policy_options(settings: StackConfig, stack: str) -> list[str]:
    """Return the options that check a plan against the policies, where they apply."""
    # A stack without protected data is a trial. An image from an archive has no digest, which a policy requires.
    if not (settings.protect_data or stack == DEV) or settings.images.archive:
        return []
    rules = ["--policy-pack", str(ROOT / "policy")]
    if given := os.environ.get("POLICY"):
        if not Path(given).is_file():
            raise StopError(f"POLICY={given}: there is no such file; nothing was changed\n  see {POLICY_PAGE}")
        return [*rules, "--policy-pack-config", given]
    if settings.object_store.copy_from:
        # While artifacts move, neither object store is protected: both must be able to leave the stack.
        rules += ["--policy-pack-config", str(ROOT / "policy" / "while-artifacts-move.json")]
    return rules
