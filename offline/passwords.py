"""The generated passwords of an engine-less deployment, stored until they are handed over to the engine."""

import json
import os
import secrets
import string
import threading
from pathlib import Path

ALPHABET = string.ascii_letters + string.digits
"""The characters of the program's passwords: no special characters."""


class Passwords:
    """The passwords of one stack, by the names of their resources, in one file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        """Use the file `path`, which is created with the first password."""
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, str]:
        """Return every password, by the name of its resource; empty if there is no file."""
        try:
            found: dict[str, str] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def get(self, name: str, length: int) -> str:
        """Return a password. The first time, generate it and write it to the file before it is used."""
        with self._lock:
            known = self.read()
            if name not in known:
                known[name] = "".join(secrets.choice(ALPHABET) for _ in range(length))
                self._write(known)
            return known[name]

    def _write(self, known: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written to a temporary file that then replaces it, so that a killed run loses no password.
        part = self.path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.path)
