"""Looking at a deployment: logs, where it is, how to use it, and what is wrong with it."""

import getpass
import os
import re
import shlex
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
import webbrowser

from components import names
from components.mlflow import ADMIN, READINESS_PATH
from components.monitoring import TYPE as MONITORING
from components.route import CLIENT_USER
from config import NAMESPACE
from operations import deploy, edge, preflight, rehearse, sealed
from operations.checkout import ROOT, Stack
from operations.console import StopError, answer, say
from operations.engine import Engine, chosen_backend, find_cli, passphrase_path
from operations.status import inspect, require_containers, services, status


def logs(stack: Stack) -> None:
    """Print the last lines of every service, or many of `SERVICE=`."""
    require_containers(stack)
    if chosen := os.environ.get("SERVICE"):
        answer(_log(stack, chosen, lines=2000))
        return
    for service in services(stack):
        answer(f"==> {names.physical(stack.name, service)}")
        try:
            # The server's health check would fill the last lines of one that has nothing else to do.
            told = [line for line in _log(stack, service, lines=1000).splitlines() if not _is_a_probe(line)]
            answer("\n".join(told[-30:]))
        except StopError as error:
            answer(str(error))


def _log(stack: Stack, service: str, *, lines: int) -> str:
    name = names.physical(stack.name, service)
    if inspect(stack, service) is not None:
        return stack.daemon.logs(name, lines=lines)
    known = services(stack)
    if service in known:
        raise StopError(f"{name} does not exist, and should; type: make up STACK={stack.name}")
    raise StopError(f"there is no container {name}; services: {', '.join(known)}, or a job's name")


def _is_a_probe(line: str) -> bool:
    """Whether a line tells that the server answered its own health check."""
    # 401 is what it wants to hear from MLflow's own users: it is nobody.
    return READINESS_PATH in line and "127.0.0.1" in line and re.search(r"\b(200|401)\b", line) is not None


def images(stack: Stack) -> None:
    """Print every image that the stack runs, MLflow's own among them: docker save -o images.tar $(make -s images)."""
    settings = stack.settings
    deployed, built = settings.images.deployed(settings.parts), settings.images.built(settings.parts)
    # One image may be what several services run.
    for name in dict.fromkeys([*(image.ref for image in deployed.values()), *(image.name for image in built.values())]):
        answer(name)


def url(stack: Stack) -> None:
    """Print where MLflow is, and nothing else."""
    answer(_url(stack))


def _url(stack: Stack) -> str:
    # The settings say it: no engine, no passphrase and no waiting.
    settings = stack.settings
    return settings.route.url


def open_browser(stack: Stack) -> None:
    """Open MLflow in the browser, or say where it is."""
    address = _url(stack)
    if not webbrowser.open(address):
        say("there is no browser here; open this address where there is one:")
        answer(address)


def env(stack: Stack) -> None:
    """Print the exports that make plain `pulumi` see what we see: eval "$(make -s env)"."""
    engine = deploy.engine_of(stack)
    # Plain `pulumi config set` wants one that exists.
    engine.select()
    for key, value in {**engine.exports, "PATH": engine.environment["PATH"]}.items():
        answer(f"export {key}={shlex.quote(value)}")


def password(stack: Stack) -> None:
    """Print the generated password with which a client is let in, or a person into `SERVICE=grafana`; nothing else."""
    if os.environ.get("SERVICE") == "grafana":
        if not stack.settings.monitoring.grafana_port:
            raise StopError(f"{stack.name} has no Grafana (mlflow:monitoring.grafanaPort)")
        answer(_required(stack, "grafanaPassword", "mlflow:monitoring.grafanaPort"))
        return
    route = stack.settings.route
    if route.by_single_sign_on and not route.by_password:
        raise StopError(
            f"{stack.name} has no password of its own: a client sends the user and password of your single sign-on"
        )
    if not route.by_password and not route.by_mlflow:
        raise StopError(f"{stack.name} asks nobody who he is (mlflow:authentication)")
    answer(_required(stack, "adminPassword" if route.by_mlflow else "clientPassword", "mlflow:authentication"))


def _required(stack: Stack, key: str, setting: str) -> str:
    """Return a secret; raise `StopError` where the setting that wants it was not deployed yet."""
    if found := credential(stack, key):
        return found
    raise StopError(
        f"{stack.name} has no {key} yet: {setting} was changed, and not deployed\n  type: make up STACK={stack.name}"
    )


def scrape(stack: Stack) -> None:
    """Print what a Prometheus of somebody's own needs, as a file for its `scrape_config_files`."""
    if rehearse.owns(stack):
        raise StopError(f"{stack.name} was deployed by a rehearsal, which keeps no state\n  use mode: bundled there")
    found = next(iter(_known_engine(stack).outputs(MONITORING)[MONITORING].values()), {}).get("scrape")
    if not found:
        raise StopError(
            f"nothing watches {stack.name}\n"
            f"  in {stack.path.name}: mlflow:monitoring: {{mode: exporters}}; then: make up STACK={stack.name}"
        )
    say(f"this holds passwords; your Prometheus has to be on the network {names.physical(stack.name, 'monitoring')}")
    answer(found.rstrip())


def _known_engine(stack: Stack) -> Engine:
    """Return the engine; raise `StopError` where the backend does not know the stack. Looking makes no stack."""
    engine = deploy.engine_of(stack, install=False)
    if not engine.knows_stack():
        raise StopError(
            f"{stack.name} was not deployed from here: {chosen_backend() or 'the backend of this machine'} has no such "
            f"stack\n  where it was deployed from another machine, PULUMI_BACKEND_URL names their backend; else type: "
            f"make up STACK={stack.name}"
        )
    return engine


def credential(stack: Stack, key: str) -> str | None:
    """Return a generated secret in clear, or None where the stack has none of this key.

    Raises `StopError` where it cannot be had. The stack's file is asked first: that needs the passphrase alone.
    """
    if rehearse.owns(stack):
        return rehearse.credentials(stack).get(key)
    if isinstance(clear := stack.values.get(f"{NAMESPACE}:{key}"), str):
        # In dev, with a warning.
        return clear
    passphrase = sealed.passphrase(passphrase_path(stack))
    if passphrase and (found := (sealed.opened(stack.document, passphrase) or {}).get(key)):
        return found
    return _known_engine(stack).secrets().get(key)


def _tell_who_is_asked(stack: Stack, *, here: bool) -> None:
    """Print what a client exports so that it is let in: on this machine, or on another one."""
    route = stack.settings.route
    if route.by_password or route.by_mlflow:
        user = ADMIN if route.by_mlflow else CLIENT_USER
        answer(f"export MLFLOW_TRACKING_USERNAME='{user}'")
        if here:
            # Fetched when it is evaluated: on a screen it would be anybody's.
            fetched = f"make -s -C {shlex.quote(str(ROOT))} password STACK={stack.name}"
            answer(f'export MLFLOW_TRACKING_PASSWORD="$({fetched})"')
        else:
            answer(f"export MLFLOW_TRACKING_PASSWORD=...    # what this prints: make password STACK={stack.name}")
    elif route.by_single_sign_on:
        answer("# and the user and password of your single sign-on:")
        answer("# export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...")
    if _is_self_signed(stack):
        answer("export MLFLOW_TRACKING_INSECURE_TLS='true'    # the certificate is self-signed")
        say(
            "warning: the certificate is self-signed, and the client does not check it: whoever is on the way can read "
            "and change everything\n"
            f"  for more than a trial, in {stack.path.name}: mlflow:traefik: {{certificate: acme}}, or own"
        )


def _is_self_signed(stack: Stack) -> bool:
    traefik = stack.settings.traefik
    return traefik.mode == "bundled" and traefik.certificate == "selfSigned"


def client(stack: Stack) -> None:
    """Print what a client exports: eval "$(make -s client)". `FOR=colleague` is for a machine without this checkout."""
    whom = os.environ.get("FOR") or "me"
    if whom not in ("me", "colleague"):
        raise StopError(f"FOR={whom}: write FOR=colleague for another machine, or leave it out")
    here = whom == "me"
    address = _url(stack)
    answer(f"export MLFLOW_TRACKING_URI='{address}'")
    if stack.settings.traefik.mode != "off":
        # One guard more against a login page; older clients do not know it.
        answer("export MLFLOW_ALLOW_HTTP_REDIRECTS='false'")
    _tell_who_is_asked(stack, here=here)
    loopback = urllib.parse.urlsplit(address).hostname == "127.0.0.1"
    if loopback and not here:
        port = urllib.parse.urlsplit(address).port
        answer(f"# {address} is an address of this host alone. Let this run on the other machine:")
        answer(f"# ssh -nNT -L {port}:127.0.0.1:{port} {getpass.getuser()}@{_this_host()}")
    if loopback and urllib.request.getproxies() and not urllib.request.proxy_bypass("127.0.0.1"):
        # The client would ask the proxy for it, which has a loopback of its own.
        for name in ("no_proxy", "NO_PROXY"):
            answer(f'export {name}="${{{name}:+${name},}}127.0.0.1,localhost"')
    answer("# pip install mlflow")
    answer("# python -c 'import mlflow; mlflow.log_metric(\"first\", 1)'")
    _tell_what_stands_in_the_way(stack, address, loopback=loopback)


def _this_host() -> str:
    """Return a name of this host that others may know it by."""
    name = socket.getfqdn()
    return "<this host>" if name.startswith("localhost") else name


def _tell_what_stands_in_the_way(stack: Stack, address: str, *, loopback: bool) -> None:
    """Say why a client on this machine would get no answer, if it would not."""
    try:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})] if loopback else []
        if _is_self_signed(stack):
            handlers.append(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))  # noqa: S323, SLF001
        with urllib.request.build_opener(*handlers).open(f"{address}/health", timeout=5):
            pass
    except (urllib.error.URLError, OSError) as error:
        if getattr(error, "code", None) in (401, 403):
            # Whoever asks for a password is there.
            return
        reason = getattr(error, "reason", error)
        hostname = urllib.parse.urlsplit(address).hostname or ""
        if isinstance(reason, socket.gaierror):
            say(f"warning: {edge.unresolved(hostname)}")
        else:
            say(f"warning: {address} does not answer from here ({reason})\n  type: make doctor STACK={stack.name}")
        if way := edge.way_there(stack):
            say(way)


def doctor(stack: Stack) -> None:
    """Explain what is wrong, and what to type: the settings, then Docker, then the host, then the deployment."""
    cli = find_cli()
    answer(f"pulumi: {cli or 'not installed; make up installs it into this checkout, where it can be had'}")
    if rehearse.owns(stack):
        answer(f"backend: none, {stack.name} was deployed by a rehearsal")
    else:
        answer(f"backend: {chosen_backend() or 'local, in your home'}")
    # Each is of use only where those before it found nothing.
    stack.settings  # noqa: B018 - raises
    if cli and not rehearse.owns(stack):
        # It asks the backend, and the passphrase with it.
        Engine(stack, install=False).knows_stack()
    preflight.require_docker_as_it_is(stack)
    preflight.require_host(stack)
    status(stack)
    found = edge.look(stack)
    for note in found.notes:
        answer(f"note: {note}")
    if found.problems:
        raise StopError("\n".join(found.problems))
    answer("nothing is wrong")
