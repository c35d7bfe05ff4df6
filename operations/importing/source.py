"""The old deployment: its database, where its artifacts are, and its data keys, from the usual variables or a path."""

import logging
import os
import re
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from dotenv import dotenv_values

from operations.common.console import StopError, make
from operations.data.data_keys import as_used
from operations.importing.compose import FILES, Compose

VARIABLES = {
    "MLFLOW_BACKEND_STORE_URI": "backend_store",
    "MLFLOW_ARTIFACT_ROOT": "artifact_root",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT": "artifact_root",
    "MLFLOW_ARTIFACTS_DESTINATION": "destination",
    "MLFLOW_S3_ENDPOINT_URL": "endpoint",
    "MLFLOW_S3_IGNORE_TLS": "insecure",
    "AWS_ACCESS_KEY_ID": "access_key",
    "AWS_SECRET_ACCESS_KEY": "secret_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_DEFAULT_REGION": "region",
    "AWS_REGION": "region",
    "MLFLOW_PORT": "port",
    "MLFLOW_AUTH_CONFIG_PATH": "auth_config",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "cryptoKekPassphrase",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "webhookEncryptionKey",
}
"""The variables of an old deployment. They are MLflow's and boto3's own, and `MLFLOW_ARTIFACT_ROOT` and `MLFLOW_PORT`
of the usual compose files."""
PAGE = "docs/operations/import.md"
NO_USERS = "none"
"""In USERS=: the users are not imported."""
DEFAULT_KEK = "mlflow-default-kek-passphrase-for-development-only"
"""The public passphrase of an MLflow for which none was set (`DEFAULT_KEK_PASSPHRASE` of its module utils.crypto)."""
DRIVERS = ("postgresql", "postgres")


@dataclass(frozen=True)
class Postgres:
    """The address of the old database, and a role that may read it."""

    host: str
    port: int
    user: str
    database: str
    password: str = field(repr=False)
    sslmode: str = "prefer"
    authority: str = ""
    """The content of the file `sslrootcert`; empty for the public authorities."""


@dataclass(frozen=True)
class S3:
    """The old object store."""

    endpoint: str
    """URL; empty for AWS."""
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(repr=False, default="")
    region: str = "us-east-1"
    insecure: bool = False
    """Whether its certificate is not verified."""


@dataclass(frozen=True)
class Source:
    """Everything that is known about the old deployment."""

    postgres: Postgres | None
    file: str
    """The SQLite file, or the folder of the file store, on the Docker host; empty with Postgres."""
    artifact_root: str
    """Where new experiments of the old server had their artifacts; empty if unknown."""
    destination: str
    """Where the old server had the artifacts that it served itself (`mlflow-artifacts:`); empty if unknown."""
    s3: S3 | None
    keys: Mapping[str, str] = field(repr=False)
    """The data keys of the old server, by our names."""
    compose: Compose
    port: int | None
    users: str = ""
    """The SQLite file with MLflow's own users, on the Docker host; empty without one."""
    without_users: bool = False
    """Whether users of the old deployment are left out, also those in its database."""

    @property
    def is_file_store(self) -> bool:
        """Whether the old server stored its runs as files."""
        return self.postgres is None and not re.search(r"\.(db|sqlite3?)$", self.file) and Path(self.file).is_dir()


def read(stack: str) -> Source:
    """Return the old deployment of SOURCE=, or of the variables; raise `StopError` with everything that is wrong."""
    given = os.environ.get("SOURCE") or ""
    path = Path(given).expanduser()
    compose, name = Compose.empty(), "SOURCE"
    if not given:
        values = {key: os.environ[key] for key in VARIABLES if os.environ.get(key)}
        name = "the environment"
        if "MLFLOW_BACKEND_STORE_URI" not in values:
            raise StopError(
                "SOURCE= is not set: the .env of the old deployment, its SQLite file, or its folder mlruns\n"
                f"  type: {make('import', stack)} SOURCE=<path> DRY_RUN=1; {PAGE}"
            )
    elif given.startswith(("http:", "https:")):
        raise StopError(
            f"SOURCE={given}: is the address of a server, which gives no database; name the .env of the old "
            f"deployment, its SQLite file or its folder mlruns; {PAGE}"
        )
    elif "://" in given:
        # Before it is parsed: an error of the parser would print the password.
        if re.match(r"[^/]*//[^/@]*:[^/@]*@", given):
            raise StopError(
                f"SOURCE= has a password, which other users of this host can read; write it into a file\n"
                f"  MLFLOW_BACKEND_STORE_URI=... in old.env, then type: {make('import', stack)} SOURCE=old.env; {PAGE}"
            )
        values = {key: os.environ[key] for key in VARIABLES if os.environ.get(key)}
        values |= {"MLFLOW_BACKEND_STORE_URI": given}
    elif path.is_dir() and (path / ".env").is_file():
        values, compose = _of_file(path / ".env")
    elif path.is_dir() or _is_sqlite(path):
        values = {"MLFLOW_BACKEND_STORE_URI": str(path.resolve())}
    else:
        values, compose = _of_file(path)
    return _source(values, compose, f"SOURCE={given}" if given else name)


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(15) == b"SQLite format 3"
    except OSError:
        return False


def _of_file(path: Path) -> tuple[dict[str, str], Compose]:
    """Return the variables of a .env, completed by the compose file beside it."""
    # It reports each line that it does not understand, and this function says what is wrong.
    logging.getLogger("dotenv").setLevel(logging.ERROR)
    try:
        values = {key: value for key, value in dotenv_values(path, interpolate=True).items() if value}
    except UnicodeDecodeError:
        raise StopError(f"SOURCE={path}: is not UTF-8; {PAGE}") from None
    except OSError as error:
        raise StopError(f"SOURCE={path}: {error.strerror}; {PAGE}") from None
    if not path.is_file():
        raise StopError(f"SOURCE={path}: there is no such file; {PAGE}")
    if not values.keys() & VARIABLES.keys() and not any((path.parent / name).is_file() for name in FILES):
        raise StopError(
            f"SOURCE={path}: is neither an SQLite file nor a folder of runs nor a file with variables such as "
            f"MLFLOW_BACKEND_STORE_URI; {PAGE}"
        )
    compose = Compose.beside(path, values)
    found = {**compose.variables, **values}
    return {key: value for key, value in found.items() if key in VARIABLES}, compose


def _source(values: Mapping[str, str], compose: Compose, name: str) -> Source:
    """Return the old deployment of the variables; raise `StopError` with everything that is wrong."""
    known: dict[str, str] = {}
    for variable, what in VARIABLES.items():
        # The first name of a thing wins.
        if values.get(variable) and what not in known:
            known[what] = values[variable].strip()
    problems: list[str] = []
    backend = known.get("backend_store", "")
    postgres, file = None, ""
    if not backend:
        problems.append("MLFLOW_BACKEND_STORE_URI: is missing")
    elif backend.split("://")[0].split("+")[0] in DRIVERS:
        postgres = _postgres(backend, problems)
    else:
        file = _file(backend, compose, problems)
    root, destination = known.get("artifact_root", ""), known.get("destination", "")
    if given := os.environ.get("ARTIFACTS"):
        root = root or given
        destination = given
    s3 = _s3(known, [backend, root, destination], problems)
    users = _users(known.get("auth_config", ""), backend, compose, problems)
    if users and file and Path(users) == Path(file).resolve():
        # In the database of the runs, with which they are imported.
        users = ""
    port = known.get("port", "")
    if port and not re.fullmatch(r"\d{1,5}", port):
        problems.append(f"MLFLOW_PORT: must be a port number (got {port})")
    if problems:
        raise StopError(f"{name}:\n  " + "\n  ".join(problems) + f"\n  nothing was changed; {PAGE}")
    return Source(
        postgres=postgres,
        file=file,
        artifact_root=root,
        destination=destination,
        s3=s3,
        keys={"cryptoKekPassphrase": DEFAULT_KEK}
        | {key: as_used(key, known[key]) for key in ("cryptoKekPassphrase", "webhookEncryptionKey") if key in known},
        compose=compose,
        port=int(port) if port else None,
        users=users,
        without_users=os.environ.get("USERS") == NO_USERS,
    )


def _postgres(uri: str, problems: list[str]) -> Postgres | None:
    """Return the parts of a URL of Postgres. Never prints it: it has a password."""
    try:
        parts = urlsplit(uri)
        port = parts.port or 5432
    except ValueError:
        problems.append(
            "MLFLOW_BACKEND_STORE_URI: is not a valid URL; write special characters of the password as %XX (@ is %40)"
        )
        return None
    query = {key: entries[-1] for key, entries in parse_qs(parts.query).items()}
    host = parts.hostname or query.get("host", "")
    database = unquote(parts.path.lstrip("/"))
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    missing = [word for word, part in (("host", host), ("database", database), ("user", user)) if not part]
    if missing:
        problems.append(f"MLFLOW_BACKEND_STORE_URI: has no {', no '.join(missing)}; postgresql://user:pw@host/database")
        return None
    authority = ""
    if path := query.get("sslrootcert", ""):
        try:
            authority = Path(path).expanduser().read_text()
        except OSError as error:
            problems.append(f"MLFLOW_BACKEND_STORE_URI: sslrootcert={path}: {error.strerror}")
    return Postgres(host, port, user, database, password, query.get("sslmode", "prefer"), authority)


def _file(backend: str, compose: Compose, problems: list[str]) -> str:
    """Return the path on the Docker host of an SQLite database or a file store."""
    scheme = backend.partition(":")[0] if "://" in backend else ""
    if scheme not in ("", "sqlite", "file"):
        problems.append(
            f"MLFLOW_BACKEND_STORE_URI: {scheme}: cannot be imported; only Postgres, SQLite and a folder can"
            + (
                "\n    copy it into a Postgres first, such as with pgloader, and name that one"
                if scheme.startswith(("mysql", "mssql"))
                else ""
            )
        )
        return ""
    path = re.sub(r"^(sqlite:///|file://|file:)", "", backend).split("?")[0]
    return compose.on_host(path)


def _users(config: str, backend: str, compose: Compose, problems: list[str]) -> str:
    """Return the file of USERS=, or of the configuration of MLflow's authentication; empty with `USERS=none`."""
    given = os.environ.get("USERS") or ""
    if given and given != NO_USERS:
        path = Path(given).expanduser().resolve()
        if not path.exists():
            problems.append(f"USERS={given}: there is no such file; to leave the users out: USERS={NO_USERS}")
        elif not _is_sqlite(path):
            problems.append(f"USERS={given}: is not an SQLite file, such as basic_auth.db")
        return str(path)
    if given or not config:
        return ""
    try:
        return _configured_users(config, backend, compose)
    except ValueError as error:
        problems.append(
            f"MLFLOW_AUTH_CONFIG_PATH: {config}: {error}\n"
            "    name the SQLite file of the users: USERS=<path>, or leave them out: USERS=none"
        )
        return ""


def _configured_users(config: str, backend: str, compose: Compose) -> str:
    """Return the file of a configuration of MLflow's authentication, or nothing if the users are in `backend`.

    Raises `ValueError` with the reason if there is no such file. The reason never quotes the configuration, which has
    passwords.
    """
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string(Path(compose.on_host(config)).read_text())
        uri = parser.get("mlflow", "database_uri")
    except OSError as error:
        raise ValueError(error.strerror) from None
    except (ConfigParserError, UnicodeDecodeError):
        raise ValueError("has no database_uri in a section [mlflow]") from None
    if same_database(uri, backend):
        return ""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        raise ValueError("the users are in another database than the runs")
    file = Path(compose.on_host(uri.partition(":///")[2].split("?")[0])).resolve()
    if not file.is_file():
        raise ValueError(f"there is no file {file} on this machine, which database_uri names")
    return str(file)


def same_database(one: str, other: str) -> bool:
    """Return whether two URLs of SQLAlchemy name the same database, with any driver, role and options."""

    def parts(url: str) -> tuple[str, str | None, int, str]:
        split = urlsplit(url)
        scheme = split.scheme.partition("+")[0].replace("postgresql", "postgres")
        return scheme, split.hostname, split.port or 5432, split.path

    try:
        return parts(one) == parts(other)
    except ValueError:
        return False


def _s3(known: Mapping[str, str], places: list[str], problems: list[str]) -> S3 | None:
    """Return the old object store, or None if none is named."""
    named = any(place.startswith("s3://") for place in places)
    keys = {what: known.get(what, "") for what in ("access_key", "secret_key")}
    if not named and not any(keys.values()):
        return None
    names = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY"}
    problems += [f"{names[what]}: is missing" for what, value in keys.items() if not value]
    endpoint = known.get("endpoint", "")
    if endpoint and not re.fullmatch(r"https?://[^\s/]+/?", endpoint):
        problems.append(f"MLFLOW_S3_ENDPOINT_URL: must be such as http://minio:9000 (got {endpoint})")
    return S3(
        endpoint=endpoint.rstrip("/"),
        access_key=keys["access_key"],
        secret_key=keys["secret_key"],
        session_token=known.get("session_token", ""),
        region=known.get("region", "us-east-1"),
        insecure=known.get("insecure", "").lower() in ("true", "1"),
    )
