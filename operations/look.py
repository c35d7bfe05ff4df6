"""Looking at a deployment: status, logs, where it is and how to use it."""

import os
import shlex
import ssl
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from datetime import UTC, datetime
from typing import Any

from docker.errors import NotFound

from components import names
from components.mlflow import ADMIN
from components.route import CLIENT_USER
from operations import backup, deploy, edge, preflight, rehearse
from operations.checkout import ROOT, Stack
from operations.console import StopError, answer, say
from operations.engine import chosen_backend, find_cli


def _services(stack: Stack) -> list[str]:
    return ["server", "postgres", *stack.settings.parts]


def _jobs(stack: Stack) -> list[str]:
    store = stack.settings.object_store
    copying = [names.COPY] if store.copy_from else []
    return [*(f"{kind}-bootstrap" for kind in store.kinds), *copying, "verify-data-keys", "migrate"]


def status(stack: Stack) -> None:
    """Print what runs, how it is, and where. Raises `StopError` if something is not as it should be."""
    _require_containers(stack)
    rows = [_row(stack, service) for service in _services(stack)]
    jobs = [_job(stack, job) for job in _jobs(stack)]
    answer(f"{stack.name} on {stack.daemon.host}")
    for name, state, detail in [*rows, *jobs]:
        answer(f"  {name:<34} {state:<12} {detail}")
    volumes = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
    answer(f"  data: {', '.join(volumes) or 'none'}")
    answer(f"  version: {_version(stack)}")
    route = stack.settings.route
    answer(f"  way in: {route.url}, authentication: {route.authentication}")
    backed_up, at_risk = backup.described(stack)
    answer(f"  backup: {backed_up}")
    disk = preflight.disk_problem(stack.daemon)
    wrong = [name for name, state, _ in rows if state != "healthy"] + [
        name for name, state, _ in jobs if state not in ("done", "-")
    ]
    problems = [problem for problem in (disk, at_risk) if problem]
    if wrong:
        problems.append(
            f"not as it should be: {', '.join(wrong)}\n"
            f"  make logs STACK={stack.name} SERVICE=... says why; make up STACK={stack.name} mends what can be mended"
        )
    if problems:
        raise StopError("\n".join(problems))


def _require_containers(stack: Stack) -> None:
    """Raise `StopError` where nothing of the stack is there: it was stopped, or never deployed."""
    label = f"{names.STACK_LABEL}={stack.name}"
    if not stack.daemon.api.containers(all=True, filters={"label": label}):
        kept = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
        state = f"stopped; its data are kept in {', '.join(kept)}" if kept else "not deployed"
        raise StopError(f"{stack.name} is {state}\n  type: make up STACK={stack.name}")


def _inspect(stack: Stack, service: str) -> dict[str, Any] | None:
    found = stack.daemon.inspect(names.physical(stack.name, service))
    return found if found and found["Config"]["Labels"].get(names.STACK_LABEL) == stack.name else None


def _row(stack: Stack, service: str) -> tuple[str, str, str]:
    name = names.physical(stack.name, service)
    found = _inspect(stack, service)
    if found is None:
        return name, "missing", ""
    state = found["State"]
    health = state.get("Health", {}).get("Status", state["Status"]) if state["Running"] else state["Status"]
    if state["Running"] and health != "healthy":
        # Docker's word is as old as its last turn; whoever looks wants to know now.
        code, _ = stack.daemon.run(name, found["Config"]["Healthcheck"]["Test"][1:])
        health = "healthy" if code == 0 else health
    since = datetime.fromisoformat(state["StartedAt"][:19]).replace(tzinfo=UTC)
    age = datetime.now(UTC) - since
    detail = f"for {_age(age.total_seconds())}, {found['RestartCount']} restarts"
    return name, health, detail if state["Running"] else f"exit code {state['ExitCode']}"


def _job(stack: Stack, job: str) -> tuple[str, str, str]:
    name = names.physical(stack.name, job)
    found = _inspect(stack, job)
    if found is None:
        # `docker container prune` takes finished jobs; nothing is lost by that.
        return name, "-", "finished and removed, or never run"
    state = found["State"]
    if state["Running"]:
        return name, "running", ""
    return (name, "done", "") if state["ExitCode"] == 0 else (name, "failed", f"exit code {state['ExitCode']}")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _version(stack: Stack) -> str:
    code, printed = stack.daemon.run(
        names.physical(stack.name, "server"),
        ["python", "-c", "import importlib.metadata as m; print(m.version('mlflow'))"],
    )
    # What runs, which the stack's file may have left behind.
    running = [_image(stack, service) for service in _services(stack) if service != "server"]
    return ", ".join([f"MLflow {printed if code == 0 else 'unknown'}", *running])


def _image(stack: Stack, service: str) -> str:
    """Return the name of the image that a service runs, or its id where it has none any more."""
    found = _inspect(stack, service)
    if found is None:
        return f"no {service}"
    try:
        tags = stack.daemon.api.inspect_image(found["Image"])["RepoTags"]  # type: ignore[no-untyped-call]
    except NotFound:
        tags = None
    return str(tags[0] if tags else found["Image"][:19])


def logs(stack: Stack) -> None:
    """Print the last lines of every service, or all of `SERVICE=`."""
    _require_containers(stack)
    chosen = os.environ.get("SERVICE")
    for service in [chosen] if chosen else _services(stack):
        name = names.physical(stack.name, service)
        if _inspect(stack, service) is None:
            raise StopError(f"there is no container {name}; services: {', '.join(_services(stack))}, or a job's name")
        if not chosen:
            answer(f"==> {name}")
        answer(stack.daemon.logs(name, lines=2000 if chosen else 30))


def images(stack: Stack) -> None:
    """Print every image that the stack runs, MLflow's own among them: docker save -o images.tar $(make -s images)."""
    settings = stack.settings
    for image in settings.images.deployed(settings.parts).values():
        answer(image.ref)
    for built in settings.images.built(settings.parts).values():
        answer(built.name)


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
        answer(f"export {key}='{value}'")


def password(stack: Stack) -> None:
    """Print the generated password with which a client is let in, or a person into `SERVICE=grafana`; nothing else."""
    if os.environ.get("SERVICE") == "grafana":
        if "grafanaPassword" not in (known := _credentials(stack)):
            raise StopError(f"{stack.name} has no Grafana (mlflow:monitoring.grafanaPort)")
        answer(known["grafanaPassword"])
        return
    route = stack.settings.route
    if route.by_single_sign_on and not route.by_password:
        raise StopError(
            f"{stack.name} has no password of its own: a client sends the user and password of your single sign-on"
        )
    if not route.by_password and not route.by_mlflow:
        raise StopError(f"{stack.name} asks nobody who he is (mlflow:authentication)")
    key = "adminPassword" if route.by_mlflow else "clientPassword"
    if key not in (known := _credentials(stack)):
        raise StopError(
            f"{stack.name} has no {key} yet: mlflow:authentication was changed, and not deployed\n"
            f"  type: make up STACK={stack.name}"
        )
    answer(known[key])


def scrape(stack: Stack) -> None:
    """Print what a Prometheus of somebody's own needs, as a file for its `scrape_config_files`."""
    if rehearse.owns(stack):
        raise StopError(f"{stack.name} was deployed by a rehearsal, which keeps no outputs\n  use mode: bundled there")
    engine = deploy.engine_of(stack)
    engine.select()
    found = engine.outputs().get("scrape")
    if not found:
        raise StopError(
            f"nothing watches {stack.name}\n"
            f"  in {stack.path.name}: mlflow:monitoring: {{mode: exporters}}; then: make up STACK={stack.name}"
        )
    say(f"this holds passwords; your Prometheus has to be on the network {names.physical(stack.name, 'monitoring')}")
    answer(found.rstrip())


def _credentials(stack: Stack) -> dict[str, str]:
    """Return every credential in clear, by its key; raise `StopError` where they cannot be had."""
    if rehearse.owns(stack):
        return rehearse.credentials(stack)
    engine = deploy.engine_of(stack)
    engine.select()
    found: dict[str, str] = engine.outputs().get("credentials", {})
    if not found:
        raise StopError(f"{stack.name} is not deployed, so it has no password yet\n  type: make up STACK={stack.name}")
    return found


def _tell_who_is_asked(stack: Stack) -> None:
    """Print what a client exports so that it is let in."""
    route = stack.settings.route
    if route.by_password or route.by_mlflow:
        user = ADMIN if route.by_mlflow else CLIENT_USER
        answer(f"export MLFLOW_TRACKING_USERNAME='{user}'")
        # Fetched when it is evaluated: on a screen it would be anybody's.
        answer(f'export MLFLOW_TRACKING_PASSWORD="$(make -s -C {shlex.quote(str(ROOT))} password STACK={stack.name})"')
    elif route.by_single_sign_on:
        answer("# and the user and password of your single sign-on:")
        answer("# export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...")
    if _is_self_signed(stack):
        answer("export MLFLOW_TRACKING_INSECURE_TLS='true'    # the certificate is self-signed")


def _is_self_signed(stack: Stack) -> bool:
    traefik = stack.settings.traefik
    return traefik.mode == "bundled" and traefik.certificate == "selfSigned"


def client(stack: Stack) -> None:
    """Print what a client exports: eval "$(make -s client)"."""
    address = _url(stack)
    answer(f"export MLFLOW_TRACKING_URI='{address}'")
    if stack.settings.traefik.mode != "off":
        # One guard more against a login page; older clients do not know it.
        answer("export MLFLOW_ALLOW_HTTP_REDIRECTS='false'")
    _tell_who_is_asked(stack)
    loopback = urllib.parse.urlsplit(address).hostname == "127.0.0.1"
    if loopback and urllib.request.getproxies() and not urllib.request.proxy_bypass("127.0.0.1"):
        # The client would ask the proxy for it, which has a loopback of its own.
        for name in ("no_proxy", "NO_PROXY"):
            answer(f'export {name}="${{{name}:+${name},}}127.0.0.1,localhost"')
    answer("# pip install mlflow")
    answer("# python -c 'import mlflow; mlflow.log_metric(\"first\", 1)'")
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
        say(f"{address} does not answer from here ({reason}); type: make status STACK={stack.name}")


def doctor(stack: Stack) -> None:
    """Explain what is wrong, and what to type: the settings, then Docker, then the host, then the deployment."""
    cli = find_cli()
    answer(f"pulumi: {cli or 'not installed; make up installs it into this checkout'}")
    answer(f"backend: {chosen_backend() or 'local, in your home'}")
    # Each is of use only where those before it found nothing.
    stack.settings  # noqa: B018 - raises
    preflight.require_docker_as_it_is(stack)
    preflight.require_host(stack)
    status(stack)
    found = edge.look(stack)
    for note in found.notes:
        answer(f"note: {note}")
    if found.problems:
        raise StopError("\n".join(found.problems))
    answer("nothing is wrong")
