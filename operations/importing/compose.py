"""What the compose file beside an old `.env` says: the server's options, its volumes, and its route at Traefik."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from operations.common.console import StopError
from operations.common.stack import yaml_problem

FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
OPTIONS = {
    "--backend-store-uri": "MLFLOW_BACKEND_STORE_URI",
    "--default-artifact-root": "MLFLOW_DEFAULT_ARTIFACT_ROOT",
    "--artifacts-destination": "MLFLOW_ARTIFACTS_DESTINATION",
}
"""Options of `mlflow server`, and the variables with the same meaning."""
VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::?-([^}]*)|:?\?[^}]*)?\}|\$(\w+)")
ROUTER = re.compile(r"traefik\.http\.routers\.([^.]+)\.(rule|entrypoints|middlewares|tls\.certresolver)")
HOST = re.compile(r"Host\(\s*[`'\"]([^`'\"]+)[`'\"]")


@dataclass(frozen=True)
class Compose:
    """The parts of a compose file that concern the server of MLflow."""

    folder: Path | None
    variables: Mapping[str, str]
    """What the options and the environment of the server say, as variables."""
    volumes: Mapping[str, str]
    """Folders of the Docker host, by their path in the container."""
    route: Mapping[str, Any]
    """Proposals for `mlflow:hostname` and `mlflow:traefik`; empty without labels of Traefik."""

    @classmethod
    def empty(cls) -> "Compose":
        """Return one that says nothing."""
        return cls(None, {}, {}, {})

    @classmethod
    def beside(cls, env: Path, values: Mapping[str, str]) -> "Compose":
        """Read the compose file beside a `.env`; raise `StopError` if it is not YAML."""
        found = next((env.parent / name for name in FILES if (env.parent / name).is_file()), None)
        if found is None:
            return cls(env.parent.resolve(), {}, {}, {})
        try:
            document = YAML(typ="safe").load(found.read_text()) or {}
        except UnicodeDecodeError:
            raise StopError(f"{found}: is not UTF-8") from None
        except YAMLError as error:
            raise StopError(yaml_problem(str(found), error)) from None
        services = document.get("services") if isinstance(document, dict) else None
        for service in (services or {}).values():
            if isinstance(service, dict) and "mlflow" in (words := _words(service.get("command"), values)):
                return cls(
                    env.parent.resolve(),
                    _environment(service, values) | _options(words),
                    _volumes(service, env.parent.resolve(), values),
                    _route(service, document.get("networks") or {}, values),
                )
        return cls(env.parent.resolve(), {}, {}, {})

    def on_host(self, path: str) -> str:
        """Return the path on the Docker host of a path in the container of the server, or beside the compose file."""
        for inside, outside in sorted(self.volumes.items(), key=lambda entry: -len(entry[0])):
            if path == inside or path.startswith(inside.rstrip("/") + "/"):
                return outside + path.removeprefix(inside.rstrip("/"))
        return str((self.folder or Path.cwd()) / Path(path).expanduser())


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """Return a text of a compose file with the variables replaced."""

    def value(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return values.get(match[1] or match[3]) or match[2] or ""

    return VARIABLE.sub(value, text)


def _words(command: Any, values: Mapping[str, str]) -> list[str]:  # noqa: ANN401 - YAML
    """Return the words of a command, also of one inside `sh -c`."""
    if isinstance(command, list):
        parts = [interpolated(str(part), values) for part in command]
    else:
        parts = _split(interpolated(str(command or ""), values))
    return [word for part in parts for word in (_split(part) if " " in part.strip() else [part.strip()])]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text.replace("\\\n", " "))
    except ValueError:
        return text.split()


def _options(words: list[str]) -> dict[str, str]:
    found = {}
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in OPTIONS:
            found[OPTIONS[option]] = value if equals else "".join(words[index + 1 : index + 2])
    return {key: value for key, value in found.items() if value}


def _environment(service: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    given = service.get("environment") or {}
    pairs = given.items() if isinstance(given, dict) else (str(entry).partition("=")[::2] for entry in given)
    return {str(key): interpolated(str(value), values) for key, value in pairs if value not in (None, "")}


def _volumes(service: Mapping[str, Any], folder: Path, values: Mapping[str, str]) -> dict[str, str]:
    """Return the bind mounts. The content of a named volume is not on the host as a folder."""
    found = {}
    for entry in service.get("volumes") or []:
        if isinstance(entry, dict):
            source, target = str(entry.get("source") or ""), str(entry.get("target") or "")
        else:
            source, target = [*interpolated(str(entry), values).split(":"), ""][:2]
        if target and source.startswith((".", "/", "~")):
            found[target] = str((folder / Path(source).expanduser()).resolve())
    return found


def _route(service: Mapping[str, Any], networks: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that have the same effect as the labels of Traefik."""
    given = service.get("labels") or {}
    pairs = given.items() if isinstance(given, dict) else (str(entry).partition("=")[::2] for entry in given)
    labels = {str(key).lower(): interpolated(str(value), values) for key, value in pairs}
    router = {match[2]: value for key, value in labels.items() if (match := ROUTER.fullmatch(key))}
    if not (host := HOST.search(router.get("rule", ""))):
        return {}
    named = labels.get("traefik.docker.network") or next(
        (_name(key, known) for key, known in networks.items() if isinstance(known, dict) and known.get("external")), ""
    )
    middlewares = [entry.strip() for entry in router.get("middlewares", "").split(",") if entry.strip()]
    single = next((entry for entry in middlewares if re.search("auth", entry, re.IGNORECASE)), "")
    traefik = {
        "mode": "existing",
        "network": named,
        "entryPoint": router.get("entrypoints", "").split(",")[0],
        "certResolver": router.get("tls.certresolver", ""),
        "middlewares": middlewares,
        "singleSignOn": single,
    }
    return {
        "hostname": host[1],
        "authentication": "singleSignOn" if single else "password",
        "traefik": {key: value for key, value in traefik.items() if value},
    }


def _name(key: str, known: Mapping[str, Any]) -> str:
    external = known.get("external")
    return str(known.get("name") or (external.get("name") if isinstance(external, dict) else None) or key)
