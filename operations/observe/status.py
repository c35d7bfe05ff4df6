"""`make status`: services with their health, endpoints, data sizes, backup, alerts and problems."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from docker.errors import NotFound

from operations.common.console import StopError, flag, format_bytes, output
from operations.common.stack import Stack
from operations.data import backup_status
from operations.host import capacity
from operations.host.servers import servers
from operations.observe import ages as secret_ages
from operations.observe import cluster
from preconditions import host as preconditions
from runtime.cluster import Cluster
from settings import names
from settings.monitoring import PROMETHEUS_PORT

WAITING = ("unhealthy", "starting")
"""The states of a service that may only be waiting for another one."""
DATA_SERVICES = ("postgres", "minio", "seaweedfs")
"""The services that wait for no other one."""
RECENT_SECONDS = 900
"""How long an out-of-memory kill counts as a problem. Later it is only shown in the count."""


def status(stack: Stack) -> None:
    """Print the status, with `JSON=1` as JSON. Raises `StopError` if there are problems."""
    try:
        require_containers(stack)
    except StopError as error:
        if flag("JSON"):
            output(json.dumps({"stack": stack.name, "services": [], "problems": [str(error)]}, indent=2))
        raise
    try:
        stack.settings  # noqa: B018 - raises on wrong settings
    except StopError as error:
        _print_what_runs(stack, error)
        raise
    found = describe(stack)
    if flag("JSON"):
        output(json.dumps(found, indent=2))
    else:
        _print(found)
    if found["problems"]:
        raise StopError("\n".join(found["problems"]))


def describe(stack: Stack) -> dict[str, Any]:
    """Return the status of a deployment. Times are in UTC, sizes in bytes."""
    running = [_service(stack, service) for service in services(stack)]
    jobs = [_job(stack, job) for job in _jobs(stack)]
    route = stack.settings.route
    known = backup_status.read_journal(stack)
    saved, at_risk = backup_status.summary(stack, known)
    alerts = _alerts(stack)
    wrong = [entry for entry in running if entry["state"] not in ("healthy", "paused")]
    wrong += [entry for entry in jobs if entry["state"] not in ("done", "-")]
    problems = [problem for problem in (capacity.disk_problem(stack.daemon), at_risk) if problem]
    problems += [
        f"the kernel has killed {entry['oomKills']} processes of {entry['name']} since its start: out of memory\n"
        f"  raise mlflow:{entry['section']}.memoryMb in {stack.path.name}, then type: make up STACK={stack.name}; "
        "docs/operations/capacity.md#memory-of-the-server"
        for entry in running
        if entry.get("oomKills") and entry.get("oomRecent", True)
    ]
    if paused := [entry["name"] for entry in running if entry["state"] == "paused"]:
        problems.append(f"paused containers: {', '.join(paused)}\n  type: docker unpause {' '.join(paused)}")
    if operation := _operation(stack):
        log = f"docker logs -f {names.docker_name(stack.name, operation)}"
        problems.append(f"the server is down until the {operation} ends\n  to see its progress: {log}")
    elif wrong:
        problems.append(_not_running(stack, wrong))
    problems += cluster.problems(stack) + secret_ages.problems(stack)
    if critical := [alert for alert in alerts or [] if alert["severity"] == "critical"]:
        pages = dict.fromkeys(f"docs/operations/alerts.md#{alert['name'].lower()}" for alert in critical)
        problems.append(f"firing alerts: {', '.join(map(_alert, critical))}\n  what to do: {', '.join(pages)}")
    return {
        "stack": stack.name,
        "host": stack.daemon.host,
        "engineless": stack.is_engineless,
        "url": route.url,
        "authentication": route.authentication,
        "endpoints": [{"url": url, "authentication": authentication} for url, authentication in route.endpoints],
        "warnings": stack.warnings,
        "mlflow": servers(stack).version or "unknown",
        "services": running,
        "jobs": jobs,
        "volumes": sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume)),
        "bytes": _bytes(stack),
        "secrets": secret_ages.ages(stack),
        "backup": {"summary": " ".join(saved.split()), **known},
        "alerts": alerts,
        "prometheus": stack.settings.monitoring_urls.get("Prometheus"),
        "problems": problems,
    }


def _not_running(stack: Stack, wrong: list[dict[str, Any]]) -> str:
    """Return which services and jobs are not as expected, what to type, and whose log tells why."""
    # Containers that do not run come before those that may be waiting for them.
    wrong = sorted(wrong, key=lambda entry: entry["state"] in WAITING)
    states = ", ".join(f"{entry['name']} ({entry['state']})" for entry in wrong)
    # A missing container has no log, and those that are not ready may only be waiting for it.
    missing = any(entry["state"] == "missing" for entry in wrong)
    telling = [entry for entry in wrong if entry["state"] not in ("missing", *(WAITING if missing else ()))]
    # A failed job comes first: all others may only be waiting for it. Then what does not run, then a data service.
    data = [names.docker_name(stack.name, service) for service in DATA_SERVICES]
    telling.sort(key=lambda entry: (entry["state"] != "failed", entry["state"] in WAITING, entry["name"] not in data))
    service = telling[0]["name"].removeprefix(names.docker_name(stack.name, "")) if telling else ""
    why = f"; for the cause: make logs STACK={stack.name} SERVICE={service}" if service else ""
    return f"not running as expected: {states}\n  to repair the deployment, type: make up STACK={stack.name}{why}"


def _operation(stack: Stack) -> str | None:
    """Return the operation that runs and stops the server meanwhile: a restore, or another in its last part."""
    if preconditions.is_running(stack.daemon, stack.name, names.RESTORE):
        return names.RESTORE
    running = [
        name
        for name in (names.EXPORT, names.IMPORT, names.UPGRADE)
        if preconditions.is_running(stack.daemon, stack.name, name)
    ]
    return running[0] if running and not servers(stack).running else None


def _print(found: dict[str, Any]) -> None:
    output(f"{found['stack']} on {found['host']}" + (", deployed without the engine" if found["engineless"] else ""))
    for entry in [*found["services"], *found["jobs"]]:
        output(f"  {entry['name']:<34} {entry['state']:<12} {_detail(entry)}")
    sizes = [f"{service} {format_bytes(number)}" for service, number in found["bytes"].items()]
    output(f"  data: {', '.join(found['volumes']) or 'none'} ({', '.join(sizes)})")
    # The images that run, which may differ from those in the stack file.
    images = [entry["image"] for entry in found["services"] if "image" in entry and entry["section"] != "server"]
    output(f"  version: MLflow {found['mlflow']}, {', '.join(dict.fromkeys(images))}")
    for way in found["endpoints"]:
        output(f"  endpoint: {way['url']}, authentication: {way['authentication']}")
    output(f"  backup: {found['backup']['summary']}")
    if found["secrets"]["days"]:
        output(f"  secrets: {secret_ages.summary(found['secrets'], found['stack'])}")
    for words in found["warnings"]:
        output(f"  warning: {words}")
    if found["alerts"] is not None:
        firing = [f"{_alert(alert)} ({alert['severity']})" for alert in found["alerts"]]
        output(f"  alerts: {', '.join(firing) or 'none'}" + (f"; {found['prometheus']}" if found["prometheus"] else ""))


def services(stack: Stack) -> list[str]:
    """Return the services of a stack: according to its settings or, if they are wrong, those that were deployed."""
    try:
        return [*stack.settings.replicas, "postgres", *stack.settings.parts]
    except StopError:
        ours = {"label": [f"{names.STACK_LABEL}={stack.name}", f"{names.ROLE_LABEL}=service"]}
        prefix = names.docker_name(stack.name, "")
        found = [
            container["Names"][0].lstrip("/").removeprefix(prefix)
            for container in stack.daemon.api.containers(all=True, filters=ours)
            if names.TASK_LABEL not in (container.get("Labels") or {})
        ]
        return sorted([*found, *Cluster(stack.daemon).services(stack.name)])


def _print_what_runs(stack: Stack, error: StopError) -> None:
    """Print the services of a stack whose settings are wrong. They run on, as they were deployed."""
    running = [_service(stack, service) for service in services(stack)]
    if flag("JSON"):
        output(json.dumps({"stack": stack.name, "services": running, "problems": [str(error)]}, indent=2))
        return
    for entry in running:
        output(f"  {entry['name']:<34} {entry['state']:<12} {_detail(entry)}")


def _jobs(stack: Stack) -> list[str]:
    store = stack.settings.object_store
    copying = [names.COPY] if store.copy_from else []
    return [*(f"{kind}-bootstrap" for kind in store.kinds), *copying, "verify-data-keys", "migrate"]


def require_containers(stack: Stack) -> None:
    """Raise `StopError` if the stack has no containers: it was stopped, or never deployed."""
    label = f"{names.STACK_LABEL}={stack.name}"
    if not stack.daemon.api.containers(all=True, filters={"label": label}):
        kept = sorted(volume for volume in stack.daemon.volumes() if names.is_data_volume(stack.name, volume))
        state = f"stopped; its data is kept in {', '.join(kept)}" if kept else "not deployed"
        raise StopError(f"{stack.name} is {state}\n  type: make up STACK={stack.name}")


def inspect(stack: Stack, service: str) -> dict[str, Any] | None:
    """Return Docker's inspection of a container of this stack, or None if there is no such container."""
    found = stack.daemon.inspect(names.docker_name(stack.name, service))
    return found if found and found["Config"]["Labels"].get(names.STACK_LABEL) == stack.name else None


def _service(stack: Stack, service: str) -> dict[str, Any]:
    """Return the name, health, start time, restarts and image of a service."""
    name = names.docker_name(stack.name, service)
    if service == names.SERVER and (tasks := cluster.service(stack)):
        return tasks
    found = inspect(stack, service)
    if found is None:
        return {"name": name, "state": "missing"}
    state = found["State"]
    health = state.get("Health", {}).get("Status", state["Status"]) if state["Running"] else state["Status"]
    if state["Paused"]:
        health = "paused"
    elif state["Running"]:
        # Docker's health is that of its last check, which may be 30 s old; run the check now.
        code, _ = stack.daemon.run(name, found["Config"]["Healthcheck"]["Test"][1:], names.OBSERVES)
        health = "healthy" if code == 0 else "starting" if health == "starting" else "unhealthy"
    return {
        "name": name,
        "state": health,
        "since": state["StartedAt"][:19] + "Z",
        "restarts": found["RestartCount"],
        "image": _image(stack, found),
        **_memory(stack, name, running=state["Running"] and not state["Paused"]),
        "section": _section(service),
        **({} if state["Running"] else {"exitCode": state["ExitCode"]}),
    }


def _memory(stack: Stack, container: str, *, running: bool) -> dict[str, Any]:
    """Return the number of out-of-memory kills in a container since its start, and whether the last one is recent.

    The count remains after the limit is raised, because that needs no restart. Docker reports only kills of the first
    process. Without a shell in the image, the count is 0.
    """
    if not running:
        return {"oomKills": 0}
    # Versions 2 and 1 of Linux control groups; one of the two exists. The server's health check writes the last file.
    script = (
        "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null; "
        "echo now $(date +%s); echo last $(date -r /run/mlflow/oom-kills +%s 2>/dev/null)"
    )
    _, printed = stack.daemon.run(container, ["sh", "-c", script])
    found = {key: int(value) for key, value in re.findall(r"(?m)^(oom_kill|now|last) (\d+)$", printed)}
    recent = found.get("now", 0) - found.get("last", 0) < RECENT_SECONDS
    return {"oomKills": found.get("oom_kill", 0), "oomRecent": recent}


def _section(service: str) -> str:
    """Return the section of the settings with a service's memory limit."""
    if service in names.OBJECT_STORES:
        return "objectStore"
    if names.is_replica(service):
        return "server"
    return service if service in ("postgres", "backup", "traefik") else "monitoring"


def _job(stack: Stack, job: str) -> dict[str, Any]:
    name = names.docker_name(stack.name, job)
    found = inspect(stack, job)
    if found is None:
        # `docker container prune` removes finished jobs, which is harmless.
        return {"name": name, "state": "-"}
    state = found["State"]
    if state["Running"]:
        return {"name": name, "state": "running"}
    code = state["ExitCode"]
    return {"name": name, "state": "done"} if code == 0 else {"name": name, "state": "failed", "exitCode": code}


def _detail(entry: dict[str, Any]) -> str:
    """Return the details of a service or a job, shown after its state."""
    if "tasks" in entry:
        return cluster.detail(entry)
    if "exitCode" in entry:
        return f"exit code {entry['exitCode']}"
    if "since" in entry:
        age = datetime.now(UTC) - datetime.fromisoformat(entry["since"])
        kills = f", {entry['oomKills']} out-of-memory kills" if entry.get("oomKills") else ""
        return f"for {_age(age.total_seconds())}, {entry['restarts']} restarts{kills}"
    return "finished and removed, or never run" if entry["state"] == "-" else ""


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _image(stack: Stack, found: dict[str, Any]) -> str:
    """Return the name of a container's image, preferably the configured one; its id if it has no name."""
    try:
        tags = stack.daemon.api.inspect_image(found["Image"])["RepoTags"] or []  # type: ignore[no-untyped-call]
    except NotFound:
        tags = []
    # Docker omits docker.io/library/.
    try:
        asked = [f"/{image.ref}" for image in stack.settings.pulled_images]
    except StopError:
        asked = []
    ours = [tag for tag in tags if any(name.endswith(f"/{tag}") for name in asked)]
    return str([*ours, *tags, found["Image"][:19]][0])


def _bytes(stack: Stack) -> dict[str, int | None]:
    """Return the data size by service, in bytes; None if it could not be measured within seconds."""
    query = "SELECT pg_database_size('mlflow')"
    asked = {"postgres": ["psql", "-U", "postgres", "-d", "mlflow", "-Atc", query]}
    # du prints kilobytes. With millions of files it would take minutes.
    asked |= {kind: ["timeout", "5", "du", "-sk", "/data"] for kind in stack.settings.object_store.kinds}
    found: dict[str, int | None] = {}
    for service, command in asked.items():
        code, printed = stack.daemon.run(names.docker_name(stack.name, service), command)
        number = printed.split()[0] if code == 0 and printed else ""
        found[service] = int(number) * (1 if service == "postgres" else 1024) if number.isdigit() else None
    return found


def _alert(alert: dict[str, str]) -> str:
    """Return an alert's name, with its instance if it has one."""
    return f"{alert['name']} of {alert['instance']}" if alert["instance"] else alert["name"]


def _alerts(stack: Stack) -> list[dict[str, str]] | None:
    """Return name, severity and instance of every firing alert; None if the stack's Prometheus does not answer."""
    if "prometheus" not in services(stack):
        return None
    container = names.docker_name(stack.name, "prometheus")
    found = stack.daemon.inspect(container)
    # As deployed, which the settings may have changed since.
    tls = any(word.startswith("--web.config.file") for word in (found or {}).get("Config", {}).get("Cmd") or [])
    request = [*(["--no-check-certificate"] if tls else []), "-O", "-"]
    url = f"{'https' if tls else 'http'}://127.0.0.1:{PROMETHEUS_PORT}/api/v1/alerts"
    code, printed = stack.daemon.run(container, ["wget", "-q", "-T", "4", *request, url])
    if code:
        return None
    firing = [
        {
            "name": alert["labels"]["alertname"],
            "severity": alert["labels"]["severity"],
            "instance": alert["labels"].get("instance", ""),
        }
        for alert in json.loads(printed)["data"]["alerts"]
        if alert["state"] == "firing" and alert["labels"]["alertname"] != "Watchdog"
    ]
    return sorted(firing, key=lambda alert: (alert["name"], alert["instance"]))
