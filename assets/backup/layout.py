"""Where a backup is staged: the folders and files of the staging volume, and the journal."""

import os
from pathlib import Path

import journal as journals

STAGING = Path(os.environ.get("STAGING", "/staging"))
CURRENT = STAGING / "current"
"""Content of a backup: the mirror of the artifacts, the dump, the manifest."""
DRILL = STAGING / "drill"
ARTIFACTS, ASIDE, DUMP, MANIFEST, INDEX = "artifacts", "aside", "mlflow.dump", "manifest.json", "index.jsonl"
KEYS = Path(os.environ.get("KEYS", "/run/secrets/data-keys"))
journal = journals.Journal(STAGING / "journal.json")
