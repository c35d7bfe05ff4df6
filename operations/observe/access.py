"""`make url`, `make client`, `make open`, `make images`."""

import getpass
import os
import shlex
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
import webbrowser

from operations.common.checkout import ROOT
from operations.common.console import StopError, output, progress
from operations.common.stack import Stack
from operations.observe import hostname
from settings.server import ADMIN
from settings.traefik import CLIENT_USER


def images(stack: Stack) -> None:
    """Print every image of the stack, including MLflow's: docker save -o images.tar $(make -s images)."""
    settings = stack.settings
    deployed, built = settings.images.deployed(settings.parts), settings.images.built(settings.parts)
    # Several services may run the same image.
    for name in dict.fromkeys([*(image.ref for image in deployed.values()), *(image.name for image in built.values())]):
        output(name)


def url(stack: Stack) -> None:
    """Print the URL of MLflow, and nothing else."""
    output(_url(stack))


def _url(stack: Stack) -> str:
    # From the settings, which needs no engine, passphrase or Docker.
    settings = stack.settings
    return settings.route.url


def open_browser(stack: Stack) -> None:
    """Open MLflow in the browser, or print its URL."""
    address = _url(stack)
    if not webbrowser.open(address):
        progress("no browser found on this machine; open this URL in one:")
        output(address)


def _print_credentials(stack: Stack, *, here: bool) -> None:
    """Print the exports with which a client authenticates, on this machine or on another one."""
    route = stack.settings.route
    if route.by_password or route.by_mlflow:
        user = ADMIN if route.by_mlflow else CLIENT_USER
        output(f"export MLFLOW_TRACKING_USERNAME='{user}'")
        if here:
            # Fetched when evaluated, so that the password is not shown on a screen.
            fetched = f"make -s -C {shlex.quote(str(ROOT))} password STACK={stack.name}"
            output(f'export MLFLOW_TRACKING_PASSWORD="$({fetched})"')
        else:
            output(f"# ask the sender of these lines for the password (printed by: make password STACK={stack.name})")
            output("export MLFLOW_TRACKING_PASSWORD='<password>'")
    elif route.by_single_sign_on:
        output("# and the user and password of your single sign-on:")
        output("# export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...")
    if _is_self_signed(stack):
        output("export MLFLOW_TRACKING_INSECURE_TLS='true'    # the certificate is self-signed")
        progress(
            "warning: the certificate is self-signed, and the client does not verify it: anybody on the network path "
            "can read and change all traffic\n"
            f"  for more than a trial, set mlflow:traefik: {{certificate: acme}} (or own) in {stack.path.name}"
        )


def _is_self_signed(stack: Stack) -> bool:
    traefik = stack.settings.traefik
    return traefik.mode == "bundled" and traefik.certificate == "selfSigned"


def client(stack: Stack) -> None:
    """Print a client's exports: eval "$(make -s client)". `FOR=colleague` is for a machine without this checkout."""
    whom = os.environ.get("FOR") or "me"
    if whom not in ("me", "colleague"):
        raise StopError(f"FOR={whom}: write FOR=colleague for another machine, or leave it out")
    here = whom == "me"
    address = _url(stack)
    output(f"export MLFLOW_TRACKING_URI='{address}'")
    if stack.settings.traefik.mode != "off":
        # Extra protection against redirects to a login page. Older clients ignore it.
        output("export MLFLOW_ALLOW_HTTP_REDIRECTS='false'")
    _print_credentials(stack, here=here)
    loopback = urllib.parse.urlsplit(address).hostname == "127.0.0.1"
    if loopback and not here:
        port = urllib.parse.urlsplit(address).port
        output("# MLflow listens on the server's own address 127.0.0.1 only. Keep this tunnel running on your machine:")
        output(f"# ssh -nNT -L {port}:127.0.0.1:{port} {getpass.getuser()}@{_this_host()}")
    if loopback and urllib.request.getproxies() and not urllib.request.proxy_bypass("127.0.0.1"):
        # Otherwise the client would send the request to the proxy, whose loopback address is another.
        for name in ("no_proxy", "NO_PROXY"):
            output(f'export {name}="${{{name}:+${name},}}127.0.0.1,localhost"')
    output("# pip install mlflow")
    output("# python -c 'import mlflow; mlflow.log_metric(\"first\", 1)'")
    _warn_of_no_answer(stack, address, loopback=loopback)


def _this_host() -> str:
    """Return a name of this host that other machines may resolve."""
    name = socket.getfqdn()
    return "<this host>" if name.startswith("localhost") else name


def _warn_of_no_answer(stack: Stack, address: str, *, loopback: bool) -> None:
    """Print why a client on this machine gets no answer, if it gets none."""
    try:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})] if loopback else []
        if _is_self_signed(stack):
            handlers.append(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))  # noqa: S323, SLF001
        with urllib.request.build_opener(*handlers).open(f"{address}/health", timeout=5):
            pass
    except (urllib.error.URLError, OSError) as error:
        if getattr(error, "code", None) in (401, 403):
            # The server answers and asks for credentials.
            return
        reason = getattr(error, "reason", error)
        host = urllib.parse.urlsplit(address).hostname or ""
        if isinstance(reason, socket.gaierror):
            progress(f"warning: {hostname.unresolved_hostname_message(host)}")
        else:
            progress(f"warning: {address} does not answer from here ({reason})\n  type: make doctor STACK={stack.name}")
        if way := hostname.ssh_forward_hint(stack):
            progress(way)
