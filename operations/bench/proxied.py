"""The stack of `make bench` behind the bundled Traefik, with TLS and a password."""

import requests
import urllib3
from ruamel.yaml import YAML

from operations.bench.plain import SetUp
from operations.common.console import StopError
from operations.common.stack import Stack
from operations.deployment import up
from operations.observe.secrets import credential
from settings import names

SETTINGS = {
    "mlflow:hostname": "mlflow.bench.example",
    "mlflow:authentication": "password",
    "mlflow:traefik": {"mode": "bundled", "bindAddress": "127.0.0.1", "httpPort": 5592, "httpsPort": 5593},
}


def deploy(stack: Stack) -> SetUp:
    """Add the bundled Traefik to a deployed stack, and return how it is measured through Traefik.

    Raises `StopError` if it does not deploy.
    """
    editor = YAML()
    document = editor.load(stack.text)
    document["config"].update(SETTINGS)
    with stack.path.open("w") as file:
        editor.dump(document, file)
    behind = Stack(stack.name)
    up.up(behind)
    route = behind.settings.route
    password = credential(behind, "clientPassword")
    if password is None:
        raise StopError(f"{stack.name} has no clientPassword, although it was deployed with mlflow:authentication")
    # Traefik made this certificate itself, and the host name is in no DNS.
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def prepare(session: requests.Session) -> None:
        session.verify = False
        session.auth = ("mlflow", password)
        session.headers["Host"] = f"{route.hostname}:{route.traefik.https_port}"

    server = names.docker_name(stack.name, "server")
    return SetUp("this stack", f"https://127.0.0.1:{route.traefik.https_port}", server, (server,), prepare)
