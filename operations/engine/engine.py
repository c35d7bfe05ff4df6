"""The Pulumi engine: where it is, where its state and its passphrase are, and how it is called.

A team's own choice always wins: its CLI, its backend, its passphrase or secrets provider. What is left open is
filled in so that a fresh checkout works: a file backend and a generated passphrase, both outside the checkout.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from operations.common.checkout import ROOT, config_home, state_home
from operations.common.console import StopError, say
from operations.common.stack import Stack
from operations.engine.backend import (
    BACKEND_ERROR,
    backend_advice,
    chosen_backend,
    drop_broken_attributes,
    passphrase_path,
)
from operations.engine.cli import BY_HAND, NoEngineError, find_cli, missing_cli, require_cli, require_providers
from operations.engine.plan import Plan
from settings import names
from settings.names import DATA_KEY, GENERATOR, SAVES, key_of

HALF_WRITTEN, HALF_WRITTEN_SECONDS = "failed to load checkpoint", (0.1, 0.2, 0.4, 0.8, 1.6)
"""What Pulumi says where it reads the state of a file backend while another run writes it, and when to look again."""
NOISE = re.compile(
    r" ~  \S+ \S+ refresh(ing)?( \([\d.]+s\))? *|@ (refreshing|previewing|updating|destroying)\.*"
    r"|    [\w-]+:[\w/:-]+ \S+  "
)
"""Lines of Pulumi's about what it looked at and left as it is."""
COUNT = re.compile(r"^    (?:[-+~]* *)?\d+ (\w+)$")
"""A line of its summary: `57 unchanged`, `+ 3 created`."""
NO_DOCKER = "ssh://nobody.invalid"
"""The provider asks every other kind of host whether it is there, before a plan that needs it for nothing.

Source: `configureDockerClient` in pulumi-docker 5, provider/image.go.
"""


def _arguments() -> list[str]:
    """Return the words of `ARGS=`, as a shell splits them; raise `StopError` where a quote is not closed."""
    given = os.environ.get("ARGS", "")
    try:
        return shlex.split(given)
    except ValueError as error:
        raise StopError(f"ARGS={given}: {error}; nothing was changed\n  type: ARGS='-m \"two words\"'") from None


class Engine:
    """The Pulumi CLI for one stack, with everything that it needs in its environment."""

    def __init__(self, stack: Stack, *, install: bool = True) -> None:
        """Find the CLI, the backend and the passphrase; raise `StopError` if one cannot be had.

        Without `install` nothing is downloaded: enough for what needs no provider.
        """
        self.stack = stack
        cli = find_cli()
        if cli is None and not install:
            raise NoEngineError(f"{missing_cli()}\n{BY_HAND}")
        self.cli = cli if cli and not install else require_cli()
        if install:
            require_providers(self.cli)
        self.exports = self._exports()
        path = os.pathsep.join([str(ROOT / ".venv" / "bin"), str(self.cli.parent), os.environ.get("PATH", "")])
        self.environment = os.environ | self.exports | {"PATH": path, "PULUMI_SKIP_UPDATE_CHECK": "true"}

    def _exports(self) -> dict[str, str]:
        """Return what plain `pulumi` needs in order to see the same stack as we do."""
        # Not where the stack's own file says it: in a shell it would speak for every stack.
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
        by_passphrase = "://" in backend and not backend.startswith("https://")
        if by_passphrase and not theirs and not self.stack.document.get("secretsprovider"):
            exports["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(self._passphrase())
        return exports

    def _passphrase(self) -> Path:
        """Return where the passphrase is, or will be where nothing has been encrypted yet; raise `StopError` else."""
        path = passphrase_path(self.stack)
        if not path.exists() and self.stack.document.get("encryptionsalt"):
            raise StopError(
                f"{self.stack.path.name}: its secrets were encrypted elsewhere, and their passphrase is not here\n"
                f"  put it into {path} (mode 0600), or set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE\n"
                "  without it they cannot be read; whoever deployed this stack first has it in the same place\n"
                "  if this file is a copy of another stack's: remove its encryptionsalt and every `secure:` entry"
            )
        stored = self._stored()
        if not path.exists() and stored and stored.get("resources"):
            raise StopError(
                f"{self._stored_in}: the state of {self.stack.name} was encrypted with a passphrase that is not here\n"
                f"  put it into {path} (mode 0600), or set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE\n"
                "  if it is lost: docs/operations/state-and-passphrase.md#a-lost-passphrase"
            )
        return path

    @property
    def _stored_in(self) -> Path | None:
        """Where a file backend keeps the state of this stack."""
        return self.state_folder / "stacks" / names.PROJECT / f"{self.stack.name}.json" if self.state_folder else None

    def _stored(self) -> dict[str, Any] | None:
        """Return the state as a file backend keeps it, or None where it keeps none of this stack."""
        try:
            stored = self._stored_in.read_text() if self._stored_in else "{}"
            found: dict[str, Any] = json.loads(stored)["checkpoint"]["latest"] or {}
        except (OSError, ValueError, KeyError):
            return None
        return found

    def _is_leftover_name(self) -> bool:
        """Whether the backend has nothing but the name of a destroyed stack, and a passphrase that is gone."""
        path = self.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE")
        if path is None or Path(path).exists():
            return False
        stored = self._stored()
        return stored is not None and not stored.get("resources")

    def _make_passphrase(self) -> None:
        """Make the passphrase, where it is to be ours and is not there yet."""
        path = Path(self.exports.get("PULUMI_CONFIG_PASSPHRASE_FILE", os.devnull))
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        say(f"made a passphrase for {self.stack.name}: {path} - keep a copy of it, it opens every secret of the stack")

    def call(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a quick `pulumi` command and return what it printed; raise `StopError` with its error."""
        done = self._quietly(*arguments, stdin=stdin)
        if done.returncode:
            raise StopError(self._explained(done.stderr.strip() or done.stdout.strip()))
        return done.stdout

    def _quietly(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        for pause in (*HALF_WRITTEN_SECONDS, None):
            done = subprocess.run(
                [self.cli, *arguments, "--stack", self.stack.name, "--non-interactive"],
                cwd=ROOT,
                env=self.environment,
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
            )
            if pause is None or not done.returncode or HALF_WRITTEN not in done.stderr:
                break
            time.sleep(pause)
        return done

    def show(self, *arguments: str) -> int:
        """Run a `pulumi` command before the person's eyes and return its exit code.

        Without a terminal Pulumi prints two lines for each resource that stays as it is: those are left out, and where
        nothing else is left, that is said.
        """
        command = [str(self.cli), *arguments, "--stack", self.stack.name, *_arguments()]
        environment = self.environment | {SAVES: "1"}
        piped = {} if sys.stdout.isatty() else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, cwd=ROOT, env=environment, **piped) as running:  # type: ignore[call-overload]
            counts: list[str] = []
            while True:
                try:
                    for line in running.stdout or ():
                        counts += COUNT.findall(line)
                        if not NOISE.fullmatch(line.rstrip("\n")):
                            sys.stdout.write(line)
                            sys.stdout.flush()
                    code: int = running.wait()
                except KeyboardInterrupt:
                    # Pulumi got it from the terminal, too, and winds up what it began: killing it now would leave a
                    # lock and half a container.
                    continue
                if code == 0 and set(counts) == {"unchanged"}:
                    say("nothing changed")
                return code

    def plan(self, *options: str) -> Plan:
        """Return what `pulumi up` would do. Docker is asked only where the plan refreshes."""
        wanted = [*options, *_arguments()]
        refreshed = any(option == "-r" or option.startswith("--refresh") for option in wanted)
        done = subprocess.run(
            [self.cli, "preview", "--json", "--stack", self.stack.name, "--non-interactive", *wanted],
            cwd=ROOT,
            env=self.environment
            | {"PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "true"}
            | ({} if refreshed else {"DOCKER_HOST": NO_DOCKER}),
            capture_output=True,
            text=True,
            check=False,
        )
        plan = Plan.read(self.stack.name, done.stdout.splitlines())
        if done.returncode and not plan.errors and not plan.refused:
            plan.errors = done.stderr.strip().splitlines()[-10:]
        return plan

    def _explained(self, error: str) -> str:
        if "incorrect passphrase" in error:
            source = self.environment.get("PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_CONFIG_PASSPHRASE")
            return (
                f"{self.stack.path.name}: the passphrase in {source} is not the one that encrypted its secrets\n"
                "  put the right one there; nothing was changed"
            )
        lines = [line for line in error.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if line.startswith("error:")), "".join(lines[-1:]))
        words = last.removeprefix("error:").strip() or "it gave no reason"
        if BACKEND_ERROR.search(words):
            backend = chosen_backend() or state_home().as_uri()
            return f"Pulumi cannot use the backend {backend}: {words}\n  {backend_advice()}; nothing was changed"
        return f"Pulumi: {words}\n  type: make doctor STACK={self.stack.name}"

    def knows_stack(self) -> bool:
        """Whether the backend has the stack. Makes nothing; raises `StopError` where the passphrase is wrong."""
        drop_broken_attributes(self.state_folder, self.stack.name)
        if self._is_leftover_name():
            return False
        # Shown to nobody: it is what asks for the passphrase, and says whether there is such a stack.
        asked = self._quietly("config", "--json", "--show-secrets")
        if asked.returncode and "no stack named" not in asked.stderr:
            raise StopError(self._explained(asked.stderr.strip()))
        return asked.returncode == 0

    def select(self) -> bool:
        """Make the stack in the backend, and its passphrase, if it is not there yet, and return whether it was made."""
        if self.knows_stack():
            return False
        if self._is_leftover_name():
            say(f"the passphrase of a {self.stack.name} that was destroyed is gone; a new one is made")
            self.call("stack", "rm", "--yes", "--preserve-config")
        self._make_passphrase()
        provider = self.stack.document.get("secretsprovider")
        self.call("stack", "init", "--no-select", *(["--secrets-provider", provider] if provider else []))
        return True

    @property
    def state_folder(self) -> Path | None:
        """Where a file backend keeps everything, or None where the backend is another."""
        address = chosen_backend() or state_home().as_uri()
        url = urlsplit(address.replace("~", str(Path.home()), 1))
        # Of file://./state the dot is the host. Pulumi runs in the checkout.
        return ROOT / unquote(url.netloc + url.path) / ".pulumi" if url.scheme == "file" else None

    def outputs(self, *types: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the outputs of every resource of some types, by type and name, secrets in clear: never print them."""
        deployment = json.loads(self.call("stack", "export", "--show-secrets"))["deployment"]
        found: dict[str, dict[str, dict[str, Any]]] = {wanted: {} for wanted in types}
        for resource in deployment.get("resources") or []:
            if resource["type"] in found:
                name = resource["urn"].rpartition("::")[2]
                # One that a killed deployment began has none yet.
                found[resource["type"]][name] = {
                    key: json.loads(value["plaintext"]) if isinstance(value, dict) and "plaintext" in value else value
                    for key, value in (resource.get("outputs") or {}).items()
                }
        return found

    def generated(self) -> dict[str, str]:
        """Return every secret that the state has a generator of, by its key in the config, in clear: never print it.

        Of a data key, the value that was last in use: the stack's file may have had another than the generator's.
        """
        found = self.outputs(GENERATOR, DATA_KEY)
        made = {key_of(name): outputs.get("result") for name, outputs in found[GENERATOR].items()}
        used = {key_of(name): outputs.get("value") for name, outputs in found[DATA_KEY].items()}
        return {key: value for key, value in [*made.items(), *used.items()] if value}

    def secrets(self) -> dict[str, str]:
        """Return every secret by its key in the config, in clear: never print it. The configured one wins."""
        configured = json.loads(self.call("config", "--json", "--show-secrets"))
        return self.generated() | {
            key.removeprefix("mlflow:"): str(entry.get("value")) for key, entry in configured.items() if entry["secret"]
        }

    def state(self) -> dict[str, Any]:
        """Return the stack's state, secrets still encrypted."""
        found: dict[str, Any] = json.loads(self.call("stack", "export"))["deployment"]
        return found
