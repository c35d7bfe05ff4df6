"""The Pulumi engine: finds or installs it, finds its state and passphrase, and calls it.

A user's own CLI, backend, passphrase or secrets provider takes precedence. Otherwise a file backend and a generated
passphrase are used, both outside the checkout, so that a fresh checkout works.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from operations.common.checkout import ROOT, config_home, state_home
from operations.common.console import StopError, progress
from operations.common.stack import Stack
from operations.engine.backend import (
    BACKEND_ERROR,
    backend_advice,
    chosen_backend,
    passphrase_path,
    remove_truncated_attributes,
)
from operations.engine.cli import (
    MANUAL_INSTALL_HINT,
    NoEngineError,
    find_cli,
    install_cli,
    missing_cli,
    require_providers,
)
from operations.engine.output import COUNT, worth_showing
from operations.engine.plan import Plan
from operations.engine.process import run_to_its_end, wait_gracefully
from operations.engine.state import State
from settings import names
from settings.names import SAVES
from settings.stack import NAMESPACE

PARTIAL_STATE_ERROR, PARTIAL_STATE_RETRY_SECONDS = "failed to load checkpoint", (0.1, 0.2, 0.4, 0.8, 1.6)
"""Pulumi's error if it reads a state that another run is writing to a file backend; seconds between the retries."""
EXPORT = ("stack", "export")
PLACEHOLDER_DOCKER_HOST = "ssh://nobody.invalid"
"""A placeholder for plans, which need no Docker host: the provider checks every host but an SSH host in advance.

Source: `configureDockerClient` in pulumi-docker 5, provider/image.go.
"""


def _arguments() -> list[str]:
    """Return the words of `ARGS=`, split as a shell does; raise `StopError` if a quote is not closed."""
    given = os.environ.get("ARGS", "")
    try:
        return shlex.split(given)
    except ValueError as error:
        raise StopError(f"ARGS={given}: {error}; nothing was changed\n  type: ARGS='-m \"two words\"'") from None


class Engine:
    """The Pulumi CLI for one stack, with the environment that it needs."""

    interrupted = False
    """Whether a person or a signal ended the last command of `show`."""

    def __init__(self, stack: Stack, *, install: bool = True) -> None:
        """Find the CLI, the backend and the passphrase; raise `StopError` if one is not available.

        With `install=False` nothing is downloaded, for commands that need no provider.
        """
        self.stack = stack
        self._state: State | None = None
        cli = find_cli()
        if cli is None and not install:
            raise NoEngineError(f"{missing_cli()}\n{MANUAL_INSTALL_HINT}")
        self.cli = cli or install_cli()
        if install:
            require_providers(self.cli)
        self.exports = self._exports()
        path = os.pathsep.join([str(ROOT / ".venv" / "bin"), str(self.cli.parent), os.environ.get("PATH", "")])
        self.environment = os.environ | self.exports | {"PATH": path, "PULUMI_SKIP_UPDATE_CHECK": "true"}

    def _exports(self) -> dict[str, str]:
        """Return the variables with which plain `pulumi` uses the same stack as this program."""
        # Not if the stack file sets it: exported in a shell it would apply to every stack.
        exports = {} if self.stack.values.get("docker:host") else {"DOCKER_HOST": self.stack.daemon.host}
        backend = chosen_backend()
        if backend is None:
            state_home().mkdir(parents=True, exist_ok=True, mode=0o700)
            backend = exports["PULUMI_BACKEND_URL"] = state_home().as_uri()
        given = os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
        # `make env` of another stack may have put its passphrase into this shell.
        anothers = (
            given is not None and Path(given).parent == config_home() and Path(given) != passphrase_path(self.stack)
        )
        theirs = "PULUMI_CONFIG_PASSPHRASE" in os.environ or (given is not None and not anothers)
        # A service, such as Pulumi Cloud, encrypts the secrets itself, unless the stack was created with a passphrase.
        by_service = "://" not in backend or backend.startswith("https://")
        by_passphrase = not by_service or bool(self.stack.document.get("encryptionsalt"))
        if by_passphrase and not theirs and not self.stack.document.get("secretsprovider"):
            exports["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(self._passphrase())
        return exports

    def _passphrase(self) -> Path:
        """Return the path of the passphrase; raise `StopError` if something is encrypted and there is none."""
        path = passphrase_path(self.stack)
        if not path.exists() and self.stack.document.get("encryptionsalt"):
            raise StopError(
                f"the secrets in {self.stack.path.name} are encrypted, and this machine has no passphrase for them\n"
                "  if you have the passphrase: set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE, or put "
                f"it into {path} (mode 0600); the user who deployed this stack first has it in the same place\n"
                "  if the file is a copy of another stack file: remove its encryptionsalt and every `secure:` entry\n"
                "  if the passphrase is lost, so are the secrets: "
                "docs/operations/state-and-passphrase.md#a-lost-passphrase\n"
                "  if nothing of the stack is left, delete the secrets from the file to start over: "
                f"sed -i '/^encryptionsalt:/d; /^ *mlflow:[A-Za-z]*:$/{{N;/secure:/d}}' {self.stack.path.name}"
            )
        stored = self._stored()
        if not path.exists() and stored and stored.get("resources"):
            raise StopError(
                f"{self._stored_in}: the state of {self.stack.name} is encrypted, and this machine has no passphrase "
                "for it\n"
                "  if you have the passphrase: set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE, or put "
                f"it into {path} (mode 0600)\n"
                "  if it is lost: docs/operations/state-and-passphrase.md#a-lost-passphrase"
            )
        return path

    @property
    def _stored_in(self) -> Path | None:
        """Path of this stack's state in a file backend, or None for another backend."""
        return self.state_folder / "stacks" / names.PROJECT / f"{self.stack.name}.json" if self.state_folder else None

    def _stored(self) -> dict[str, Any] | None:
        """Return the stack's state from a file backend, or None if the backend has none."""
        try:
            stored = self._stored_in.read_text() if self._stored_in else "{}"
            found: dict[str, Any] = json.loads(stored)["checkpoint"]["latest"] or {}
        except (OSError, ValueError, KeyError):
            return None
        return found

    def _is_leftover_name(self) -> bool:
        """Return whether the backend has only an empty stack, destroyed earlier, whose passphrase is missing."""
        path = self.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE")
        if path is None or Path(path).exists():
            return False
        stored = self._stored()
        return stored is not None and not stored.get("resources")

    def _create_passphrase(self) -> None:
        """Create the passphrase if a generated one is used and it does not exist yet."""
        path = Path(self.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE", os.devnull))
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        progress(f"created a passphrase for {self.stack.name}: {path}")

    def call(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a `pulumi` command and return its output; raise `StopError` with its error."""
        done = self._run_captured(*arguments, stdin=stdin)
        if arguments[0] != "config" and arguments[:2] != EXPORT:
            self.forget_state()
        if done.returncode:
            raise StopError(self._error_message(done.stderr.strip() or done.stdout.strip()))
        return done.stdout

    def _run_captured(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.cli), *arguments, "--stack", self.stack.name, "--non-interactive"]
        for pause in (*PARTIAL_STATE_RETRY_SECONDS, None):
            # Half of a changed file would be lost, so that Ctrl-C waits for those 0.3 s.
            shielded = arguments[0] == "config"
            done = run_to_its_end(command, cwd=ROOT, environment=self.environment, stdin=stdin, shielded=shielded)
            if pause is None or not done.returncode or PARTIAL_STATE_ERROR not in done.stderr:
                break
            time.sleep(pause)
        return done

    def show(self, *arguments: str) -> int:
        """Run a `pulumi` command, show its output, and return its exit code.

        Without a terminal Pulumi prints two lines for each unchanged resource, and more that a reader does not need:
        those are left out. If nothing changed, print that.
        """
        command = [str(self.cli), *arguments, "--stack", self.stack.name, *_arguments()]
        environment = self.environment | {SAVES: "1"}
        piped = {} if sys.stdout.isatty() else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        counts: list[str] = []

        def relay(lines: Iterable[str]) -> None:
            for line in worth_showing(lines):
                counts.extend(COUNT.findall(line))
                # A reader that is gone, such as a `tee` that Ctrl-C has ended, or a full disk must not end Pulumi.
                with suppress(OSError):
                    sys.stdout.write(line)
                    sys.stdout.flush()

        code, self.interrupted = wait_gracefully(command, relay, cwd=ROOT, env=environment, **piped)
        if code == 0 and set(counts) == {"unchanged"}:
            progress("nothing changed")
        else:
            self.forget_state()
        return code

    def plan(self, *options: str) -> Plan:
        """Return the plan of `pulumi up`. Docker is contacted only if the plan refreshes."""
        wanted = [*options, *_arguments()]
        refreshed = any(option == "-r" or option.startswith("--refresh") for option in wanted)
        done = subprocess.run(
            [self.cli, "preview", "--json", "--stack", self.stack.name, "--non-interactive", *wanted],
            cwd=ROOT,
            env=self.environment
            | {"PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "true"}
            | ({} if refreshed else {"DOCKER_HOST": PLACEHOLDER_DOCKER_HOST}),
            capture_output=True,
            text=True,
            check=False,
        )
        plan = Plan.read(self.stack.name, done.stdout.splitlines())
        if done.returncode and not plan.errors and not plan.refused:
            plan.errors = done.stderr.strip().splitlines()[-10:]
        return plan

    def _error_message(self, error: str) -> str:
        if "incorrect passphrase" in error:
            source = self.environment.get("PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_CONFIG_PASSPHRASE")
            return (
                f"{self.stack.path.name}: the passphrase in {source} does not decrypt its secrets\n"
                "  put the correct passphrase there; nothing was changed"
            )
        lines = [line for line in error.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if line.startswith("error:")), "".join(lines[-1:]))
        words = last.removeprefix("error:").strip() or "failed without a reason"
        if BACKEND_ERROR.search(words):
            backend = chosen_backend() or state_home().as_uri()
            return f"Pulumi cannot use the backend {backend}: {words}\n  {backend_advice()}; nothing was changed"
        return (
            f"Pulumi: {words}\n"
            f"  this is Pulumi's own message; its state and passphrase: docs/operations/state-and-passphrase.md"
        )

    def has_stack(self) -> bool:
        """Return whether the backend has the stack. Creates nothing; raises `StopError` if the passphrase is wrong."""
        remove_truncated_attributes(self.state_folder, self.stack.name)
        # If there is no stack.
        self._state = State({})
        if self._is_leftover_name():
            return False
        asked = self._run_captured(*EXPORT, "--show-secrets")
        if asked.returncode:
            if "no stack named" in asked.stderr:
                return False
            raise StopError(self._error_message(asked.stderr.strip()))
        self._state = State.read(asked.stdout)
        if not self._state.was_decrypted_with(self.stack.document.get("encryptionsalt")):
            # The export has not checked the passphrase of the stack file. This command does.
            self.call("config", "--json", "--show-secrets")
        return True

    def select(self) -> bool:
        """Create the stack in the backend, and its passphrase, if missing; return whether the stack was created."""
        if self.has_stack():
            return False
        self.create()
        return True

    def create(self) -> None:
        """Create the stack, which the backend does not have, and its passphrase, if missing."""
        if self._is_leftover_name():
            progress(f"the passphrase of an earlier, destroyed {self.stack.name} is missing; creating a new one")
            self.call("stack", "rm", "--yes", "--preserve-config")
        self._create_passphrase()
        provider = self.stack.document.get("secretsprovider")
        self.call("stack", "init", "--no-select", *(["--secrets-provider", provider] if provider else []))
        # Known without another export, which takes 0.3 s.
        self._state = State({})

    @property
    def state_folder(self) -> Path | None:
        """Folder of a file backend, or None for another backend."""
        address = chosen_backend() or state_home().as_uri()
        url = urlsplit(re.sub("^file://~(?=/|$)", f"file://{Path.home()}", address))
        # In file://./state the dot is parsed as the host. Pulumi runs in the checkout.
        return ROOT / unquote(url.netloc + url.path) / ".pulumi" if url.scheme == "file" else None

    @property
    def state(self) -> State:
        """The state. It is exported once, and again after each command that may have changed it."""
        if self._state is None:
            self._state = State.read(self.call(*EXPORT, "--show-secrets"))
        return self._state

    def forget_state(self) -> None:
        """Export the state again the next time."""
        self._state = None

    @property
    def configured(self) -> set[str]:
        """The keys of the config below `mlflow:`, including those of the project and of imported environments."""
        # A command of Pulumi takes 0.3 s, so it is asked only for what the stack file does not have.
        elsewhere = self.stack.document.get("environment") or yaml.safe_load((ROOT / "Pulumi.yaml").read_text()).get(
            "config"
        )
        keys = json.loads(self.call("config", "--json")) if elsewhere else self.stack.values
        return {key.removeprefix(f"{NAMESPACE}:") for key in keys}

    def secrets(self) -> dict[str, str]:
        """Return every secret by its config key; a configured one takes precedence. Plain text: never print it."""
        configured = json.loads(self.call("config", "--json", "--show-secrets"))
        return self.state.generated() | {
            key.removeprefix(f"{NAMESPACE}:"): str(entry.get("value"))
            for key, entry in configured.items()
            if entry["secret"]
        }
