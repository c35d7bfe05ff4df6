"""The generated passwords: all that a rehearsal has to remember, kept until the engine takes them over."""

import json
import os
import secrets
import string
import threading
from pathlib import Path

ALPHABET = string.ascii_letters + string.digits
"""What the program asks the engine's generator for: no special characters."""


class Passwords:
    """The passwords of one stack, by the names of their resources, in one file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        """Remember where the file is; it is made with the first password."""
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, str]:
        """Return every password, by the name of its resource; none where nothing was rehearsed."""
        try:
            found: dict[str, str] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def get(self, name: str, length: int) -> str:
        """Return a password, made and written down the first time: before anything can have been given it."""
        with self._lock:
            known = self.read()
            if name not in known:
                known[name] = "".join(secrets.choice(ALPHABET) for _ in range(length))
                self._write(known)
            return known[name]

    def _write(self, known: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Beside its place and moved there whole: a run that is killed loses none.
        part = self.path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.path)
