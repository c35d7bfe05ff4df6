"""Generated credentials, written into the stack's config once the deployment works with them.

Until then they live in the state alone, and losing the state would lose them: the data keys, and with them what
they encrypt. Afterwards the stack's file, which is meant to be committed, has them encrypted.
"""

import json

from operations.common.console import say
from operations.common.stack import Stack
from operations.engine.engine import Engine
from settings import names


def save_credentials(engine: Engine) -> list[str]:
    """Write every generated credential that the config does not have yet; return their keys."""
    credentials = engine.generated()
    # Pulumi's own list: an imported environment may bring some.
    known = {key.removeprefix("mlflow:") for key in json.loads(engine.call("config", "--json"))}
    missing = [key for key in credentials if key not in known]
    for key in missing:
        # Through stdin: an argument would be in the process list.
        engine.call("config", "set", "--secret", key, stdin=credentials[key])
    return missing


def report_what_to_keep(engine: Engine, saved: list[str]) -> None:
    """Say what changed in the stack's file, what to commit, and what to keep safe."""
    if not saved:
        return
    path = engine.stack.path.name
    passphrase = engine.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    say(
        f"\n{path} now holds {len(saved)} generated secrets, encrypted. Commit it: git add {path} && "
        f"git commit -m 'Secrets' {path}"
    )
    if passphrase:
        say(f"Keep a copy of {passphrase} somewhere safe: it opens them, and exists nowhere else.")


def report_kept_backups(stack: Stack) -> None:
    """Say where the backups of a deleted stack are, if they are on its host, and how to delete them, too."""
    for volume in sorted(stack.daemon.volumes()):
        if names.is_backup_volume(stack.name, volume):
            # A folder of the host outlives the volume that Docker has of it.
            folder = (stack.daemon.api.inspect_volume(volume)["Options"] or {}).get("device")
            files = f" && rm -r {folder}" if folder else ""
            say(f"Its backups are kept in {folder or volume}. Delete them, too: docker volume rm {volume}{files}")
