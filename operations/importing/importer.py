"""The containers of an import: they run assets/import beside the stack, with access to the old deployment."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from docker.errors import APIError

from operations.common.checkout import ROOT
from operations.common.console import StopError, make, relay_output
from operations.common.stack import Stack
from operations.data.data_keys import secret_of
from operations.host.once import backend, packed
from operations.host.servers import servers
from operations.importing.reach import DEFAULT_NETWORK, OUTSIDE, endpoint, reach
from operations.importing.source import PAGE, Source
from settings import names

FILES = "/run/import"
WORK = "/staging/import"
FOLDERS = "/source"
"""Where the folders of the Docker host are in the containers. As in assets/import/copying.py."""
MEMORY_MB = 1024
"""At least; more with a larger `mlflow:backup.memoryMb`. The list of all artifacts is held in memory."""
KILLED = 137
"""Exit code of a container whose process was killed, which the kernel does when memory runs out."""
READ_ALL = ("DAC_READ_SEARCH", "DAC_OVERRIDE")
"""Capabilities with which root reads folders of the Docker host that belong to any user. They are mounted read-only."""


@dataclass(frozen=True)
class Importer:
    """Runs commands in containers. A container starts in a second, so that several commands may share one."""

    stack: Stack
    source: Source
    files: Mapping[str, str]
    """More files, by name: what to copy, and what to rewrite."""
    folders: Sequence[str] = ()
    """Folders of the Docker host that the commands read."""
    started: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y%m%d_%H%M%S"))

    def with_plan(self, moves: Sequence[Mapping[str, object]], sql: str) -> "Importer":
        """Return one that copies and rewrites."""
        folders = [str(move["source"]) for move in moves if str(move["source"]).startswith("/")]
        files = {"moves.json": json.dumps(list(moves)), "locations.sql": sql}
        return Importer(self.stack, self.source, files, folders, self.started)

    def run(self, *commands: str) -> None:
        """Run commands of assets/import/importer.py one after another; raise `StopError` if one fails."""
        self._started(commands, relay_output)

    def ask(self, *commands: str, shown: bool = False) -> Any:  # noqa: ANN401 - JSON
        """Run commands, and return what the last one that returns something returns; raise `StopError` if one fails.

        With `shown`, what else they print is passed on as it comes.
        """
        printed: list[str] = []
        relayed = 0

        def tell(words: str) -> None:
            nonlocal relayed
            printed.append(words)
            # The last line is the result, or the error.
            lines = "".join(printed).splitlines(keepends=True)
            if shown:
                relay_output("".join(lines[relayed:-1]))
                relayed = max(relayed, len(lines) - 1)

        self._started(commands, tell, quiet=True)
        try:
            return json.loads("".join(printed).strip().splitlines()[-1])
        except (IndexError, ValueError):
            # The daemon was restarted: the container went on, and its last lines were not passed on.
            raise StopError(f"the answer of {commands[-1]} was lost; type the same command again") from None

    def _started(self, commands: Sequence[str], tell: Callable[[str], None], *, quiet: bool = False) -> None:
        stack = self.stack
        backup = stack.daemon.api.inspect_container(names.docker_name(stack.name, "backup"))
        theirs = dict(entry.partition("=")[::2] for entry in backup["Config"]["Env"])
        secrets = "/run/server-secrets"
        environment = theirs | {
            "PGUSER": "mlflow",
            "PGPASS": f"{secrets}/pgpass",
            "RCLONE_CONFIG_STORE_SHARED_CREDENTIALS_FILE": f"{secrets}/aws-credentials",
            "TMPDIR": f"{WORK}/files",
            "STARTED": self.started,
            **self._users,
        }
        old, networks, files = self._access()
        binds = [*backup["HostConfig"]["Binds"], f"{names.docker_name(stack.name, 'server-secrets')}:{secrets}:ro"]
        body = {
            "Image": backup["Image"],
            "Entrypoint": ["python3", f"{FILES}/importer.py", *commands],
            "Env": [f"{key}={value}" for key, value in {**environment, **old}.items()],
            "HostConfig": {"Binds": binds, "Mounts": self._mounts(), "Tmpfs": backup["HostConfig"]["Tmpfs"]},
        }
        assets = [*(ROOT / "assets" / "backup").glob("*.py"), *(ROOT / "assets" / "import").glob("*.py")]
        everything = {path.name: path.read_text() for path in assets} | files | dict(self.files)
        printed: list[str] = []

        def pass_on(words: str) -> None:
            printed.append(words)
            tell(words)

        networks = [*backup["NetworkSettings"]["Networks"], *networks]
        if code := self._once(body, everything, networks, pass_on):
            # What was printed before the error has been passed on.
            said = re.split(r"^error: ", "".join(printed).strip(), flags=re.MULTILINE)[-1]
            reason = said if quiet else "the reason is above, after 'error:'"
            if code == KILLED:
                reason = f"memory ran out; raise mlflow:backup.memoryMb, then type: {make('up', stack.name)}"
            raise StopError(reason)

    def sqlite(self, command: str, tell: Callable[[str], None] = relay_output, *, users: bool = False) -> None:
        """Run a command of assets/import/from_sqlite.py in the image of MLflow; raise `StopError` if it fails.

        `users`: for the file with MLflow's own users.
        """
        deployed = servers(self.stack)
        environment = {
            key: value
            for key, value in deployed.environment.items()
            if key in ("MLFLOW_BACKEND_STORE_URI", "PGSSLMODE")
        }
        environment |= {"PGPASSFILE": f"{FILES}/pgpass", "FILES": FILES, "WORK": WORK, "HOME": "/tmp"}  # noqa: S108
        environment |= {"SOURCE": FOLDERS + self.source.file, "PYTHONWARNINGS": "ignore", **self._users}
        if users:
            environment |= {"SOURCE": FOLDERS + self.source.users, "WORK": f"{WORK}/users", "ONLY_USERS": "1"}
        scripts = ("from_sqlite.py", "tables.py")
        files = {name: (ROOT / "assets" / "import" / name).read_text() for name in scripts} | dict(self.files)
        files["pgpass"] = secret_of(deployed, "pgpass")
        if deployed.scheme == "https":
            environment |= {"PGSSLROOTCERT": f"{FILES}/{names.AUTHORITY_FILE}"}
            files[names.AUTHORITY_FILE] = secret_of(deployed, names.AUTHORITY_FILE)
        body = {
            "Image": deployed.images[0],
            "Entrypoint": ["python", "-W", "ignore", f"{FILES}/from_sqlite.py", command],
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "HostConfig": {
                "Binds": [f"{names.docker_name(self.stack.name, 'backup-staging')}:/staging"],
                "Mounts": self._mounts(),
            },
        }
        printed: list[str] = []
        if self._once(body, files, backend(self.stack), printed.append):
            said = "".join(printed).strip().removeprefix("error: ").replace(f"{FOLDERS}/", "/")
            raise StopError(f"{said}\n  nothing was changed; {PAGE}")
        tell("".join(printed))

    def undecrypted(self) -> dict[str, int]:
        """Return how many encrypted values the data keys of the old server do not decrypt, by data key.

        Raises `StopError`.
        """
        files = {"old_keys.py": (ROOT / "assets" / "import" / "old_keys.py").read_text()}
        files |= {f"{key}.old": value for key, value in self.source.keys.items()}
        body = {
            "Image": servers(self.stack).images[0],
            "Entrypoint": ["python", "-W", "ignore", f"{FILES}/old_keys.py"],
            "Env": [f"FILES={FILES}", f"VALUES={WORK}/values.json", "HOME=/tmp"],
            "HostConfig": {
                "Binds": [f"{names.docker_name(self.stack.name, 'backup-staging')}:/staging:ro"],
                "NetworkMode": "none",
                "ExtraHosts": [],
            },
        }
        printed: list[str] = []
        code = self._once(body, files, (), printed.append)
        answers = [line for line in "".join(printed).splitlines() if line.startswith("{")]
        if code or not answers:
            said = "memory ran out" if code == KILLED else "".join(printed).strip().rpartition("\n")[2]
            raise StopError(
                f"the data keys of the old server could not be tried: {said}\n  nothing was changed; {PAGE}"
            )
        found: dict[str, int] = json.loads(answers[-1])
        return found

    def _once(
        self, body: dict[str, Any], files: Mapping[str, str], networks: Sequence[str], tell: Callable[[str], None]
    ) -> int:
        """Run a container as root, which may read any file of the old deployment, and write none of it."""
        host = body.pop("HostConfig")
        backup = self.stack.daemon.api.inspect_container(names.docker_name(self.stack.name, "backup"))
        memory = max(MEMORY_MB * 2**20, backup["HostConfig"]["Memory"])
        body |= {
            "User": "0:0",
            "Cmd": [],
            "Labels": {names.STACK_LABEL: self.stack.name},
            "HostConfig": {
                "CapDrop": ["ALL"],
                "CapAdd": list(READ_ALL),
                "SecurityOpt": ["no-new-privileges:true"],
                "Init": True,
                "Memory": memory,
                "MemorySwap": memory,
                "ExtraHosts": [f"{OUTSIDE}:host-gateway"],
                **host,
            },
        }
        archive = packed({f"{FILES}/{name}": content for name, content in files.items()}, 0)
        name = names.docker_name(self.stack.name, names.IMPORT)
        try:
            return self.stack.daemon.once(name, body, tell, networks=list(dict.fromkeys(networks)), archive=archive)
        except APIError as error:
            words = str(error.explanation or error)
            if "bind source path does not exist" in words:
                raise StopError(f"{words.rpartition(': ')[2]}: there is no such folder on the Docker host") from None
            if "already in use" in words or error.status_code == 409:  # noqa: PLR2004
                raise StopError(
                    f"another import of {self.stack.name} is running; to see its progress: docker logs -f {name}"
                ) from None
            raise

    @property
    def _users(self) -> dict[str, str]:
        """The variables that say which users are imported: of the file, none, or those of the database."""
        return {
            "WITH_USERS": "1" if self.source.users else "",
            "WITHOUT_USERS": "1" if self.source.without_users else "",
        }

    def _mounts(self) -> list[dict[str, object]]:
        """Return the mounts of the old folders. The folder of an SQLite file, because files beside it belong to it."""
        file = self.source.file
        parent = [file if self.source.is_file_store else file.rpartition("/")[0] or "/"] if file else []
        parent += [self.source.users.rpartition("/")[0] or "/"] if self.source.users else []
        folders = sorted({*self.folders, *parent})
        # One inside another is mounted with it.
        outer = [folder for folder in folders if not any(folder.startswith(f"{other}/") for other in folders)]
        # Not as Binds: for those, Docker creates a folder that is missing.
        return [{"Type": "bind", "Source": path, "Target": FOLDERS + path, "ReadOnly": True} for path in outer]

    def _access(self) -> tuple[dict[str, str], list[str], dict[str, str]]:
        """Return how to reach the old deployment: environment, networks and files."""
        daemon, source = self.stack.daemon, self.source
        folder = source.compose.folder
        networks = [DEFAULT_NETWORK]
        access: dict[str, object] = {}
        if old := source.postgres:
            address = reach(daemon, old.host, old.port, folder)
            access = {"host": address.host, "port": address.port, "user": old.user, "dbname": old.database}
            access |= {"password": old.password, "sslmode": old.sslmode}
            if old.sslmode.startswith("verify"):
                access["sslrootcert"] = f"{FILES}/old-authority.pem" if old.authority else "system"
            networks += [address.network] if address.network else []
        environment: dict[str, str] = {}
        files = {"source.json": json.dumps(access), "keys.json": json.dumps(sorted(source.keys))}
        if source.postgres and source.postgres.authority:
            files["old-authority.pem"] = source.postgres.authority
        if old_store := source.s3:
            url, network = endpoint(daemon, old_store.endpoint, folder) if old_store.endpoint else ("", None)
            networks += [network] if network else []
            prefix = "RCLONE_CONFIG_OLD_"
            environment = {
                f"{prefix}TYPE": "s3",
                f"{prefix}PROVIDER": "Other" if url else "AWS",
                f"{prefix}ENDPOINT": url,
                f"{prefix}REGION": old_store.region,
                f"{prefix}ENV_AUTH": "true",
                f"{prefix}NO_CHECK_BUCKET": "true",
                f"{prefix}SHARED_CREDENTIALS_FILE": f"{FILES}/credentials",
                "OLD_INSECURE": "1" if old_store.insecure else "",
            }
            token = [f"aws_session_token = {old_store.session_token}"] if old_store.session_token else []
            files["credentials"] = "\n".join(
                [
                    "[default]",
                    f"aws_access_key_id = {old_store.access_key}",
                    f"aws_secret_access_key = {old_store.secret_key}",
                    *token,
                    "",
                ]
            )
        return environment, networks, files
