"""The write-back of generated secrets into the stack file, after a deployment with them has completed.

Before that they are only in the state. If the state were lost, the data keys would be lost, and with them the data that
they encrypt. Afterwards they are encrypted in the stack file, which is meant to be committed.
"""

from operations.common.console import progress
from operations.common.stack import Stack
from operations.engine.engine import Engine
from operations.engine.moments import count_from_now, note_value
from settings import names
from settings.secrets import GENERATED_KEYS


def write_back_secrets(engine: Engine) -> list[str]:
    """Write every generated secret that the config does not have yet into the stack file; return their keys."""
    credentials = engine.state.generated()
    known = engine.configured
    missing = [key for key in credentials if key not in known]
    if missing and not known & set(GENERATED_KEYS):
        # These are the first secrets of the stack, and have just been generated.
        count_from_now(engine)
    for key in missing:
        # Through stdin, because arguments are visible in the process list.
        engine.call("config", "set", "--secret", key, stdin=credentials[key])
        if known & set(GENERATED_KEYS) and engine.stack.settings.rotation.since:
            # Otherwise a secret that a later setting needs would be as old as the first ones.
            note_value(engine, key)
    return missing


def report_what_to_keep(engine: Engine, saved: list[str]) -> None:
    """Print how many secrets the stack file got, and what to commit and to keep safe."""
    if not saved:
        return
    path = engine.stack.path.name
    passphrase = engine.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    progress(
        f"\n{path} has new generated secrets ({len(saved)}), encrypted. Commit it:\n"
        f"  git add {path} && git commit -m 'Secrets' {path}"
    )
    if passphrase:
        progress(f"Keep a copy of the passphrase that decrypts them. It exists only here:\n  {passphrase}")


def report_kept_backups(stack: Stack) -> None:
    """Print where the backups of a deleted stack are, if they are on its host, and how to delete them."""
    for volume in sorted(stack.daemon.volumes()):
        if names.is_backup_volume(stack.name, volume):
            # Removing the Docker volume of a host folder does not remove the folder.
            folder = (stack.daemon.api.inspect_volume(volume)["Options"] or {}).get("device")
            files = f" && rm -r {folder}" if folder else ""
            progress(f"Its backups are kept in {folder or volume}. To delete them: docker volume rm {volume}{files}")
