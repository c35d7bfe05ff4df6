"""A resource's arguments as the Docker API takes them."""

import io
import tarfile
from typing import Any

from docker.types import IPAMConfig, IPAMPool


class EngineLessError(Exception):
    """The engine-less deployment failed, or does not support something; the message says what."""


CONTAINER_KEYS = {
    *("name", "image", "entrypoints", "command", "envs", "user", "readOnly", "capabilities", "securityOpts", "memory"),
    *("memorySwap", "cpus", "shmSize", "tmpfs", "networkMode", "networksAdvanced", "volumes", "logDriver", "logOpts"),
    *("labels", "restart", "init", "healthcheck", "ports", "stopTimeout", "destroyGraceSeconds", "mustRun", "start"),
    "uploads",
}
"""All supported arguments. Any other is refused, because it would be ignored."""
NESTED_KEYS = {
    "uploads": {"file", "content", "permissions"},
    "volumes": {"volumeName", "containerPath", "readOnly"},
    "networksAdvanced": {"name"},
    "ports": {"internal", "external", "ip", "protocol"},
    "labels": {"label", "value"},
    "ipamConfigs": {"subnet", "gateway"},
}


def ipam_config(configs: list[dict[str, Any]]) -> IPAMConfig | None:
    """Return a network's addresses in the form of Docker's API, or None if Docker chooses them."""
    if not configs:
        return None
    return IPAMConfig(pool_configs=[IPAMPool(subnet=entry["subnet"], gateway=entry["gateway"]) for entry in configs])


def require_known(known: set[str], inputs: dict[str, Any], of: str | None = None) -> None:
    """Raise `EngineLessError` where `inputs` has an argument outside `known`: it would be ignored."""
    if unknown := sorted(set(inputs) - known):
        raise EngineLessError(f"{of or inputs['name']}: not supported without the engine: {', '.join(unknown)}")


def container_body(inputs: dict[str, Any], marks: dict[str, str]) -> dict[str, Any]:
    """Return the body of Docker's request to create a container, with the defaults that Pulumi's provider sends."""
    volumes = inputs.get("volumes", [])
    ports = {f"{port['internal']}/{port.get('protocol', 'tcp')}": port for port in inputs.get("ports", [])}
    body: dict[str, Any] = {
        "Image": inputs["image"],
        "Entrypoint": inputs.get("entrypoints"),
        "Cmd": inputs.get("command"),
        "Env": inputs.get("envs"),
        "User": inputs.get("user", ""),
        "Labels": labels_of(inputs) | marks,
        "Volumes": {volume["containerPath"]: {} for volume in volumes},
        "ExposedPorts": {port: {} for port in ports},
        "HostConfig": {
            "Binds": [
                f"{volume['volumeName']}:{volume['containerPath']}:{'ro' if volume.get('readOnly') else 'rw'}"
                for volume in volumes
            ],
            "LogConfig": {"Type": inputs.get("logDriver", "json-file"), "Config": inputs.get("logOpts", {})},
            "NetworkMode": inputs.get("networkMode", "bridge"),
            "PortBindings": {
                key: [{"HostIp": port.get("ip", "0.0.0.0"), "HostPort": str(port["external"])}]  # noqa: S104
                for key, port in ports.items()
            }
            or None,
            "RestartPolicy": {"Name": inputs.get("restart", "no"), "MaximumRetryCount": 0},
            "CapDrop": inputs.get("capabilities", {}).get("drops"),
            "ReadonlyRootfs": inputs.get("readOnly", False),
            "SecurityOpt": inputs.get("securityOpts"),
            "Tmpfs": inputs.get("tmpfs"),
            "ShmSize": inputs.get("shmSize", 64) * 2**20,
            "Memory": inputs.get("memory", 0) * 2**20,
            "MemorySwap": inputs.get("memorySwap", 0) * 2**20,
            "NanoCpus": round(float(inputs.get("cpus", 0)) * 10**9),
            "Init": inputs.get("init", False),
        },
    }
    if check := inputs.get("healthcheck"):
        body["Healthcheck"] = {"Test": check["tests"], "Retries": check["retries"]} | {
            docker: _nanoseconds(check[pulumi])
            for docker, pulumi in (("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "startPeriod"))
        }
    if "stopTimeout" in inputs:
        body["StopTimeout"] = inputs["stopTimeout"]
    return body


def _nanoseconds(duration: str) -> int:
    """Parse a duration in the format of `runtime/container.py` (1m30s, 5s); return nanoseconds."""
    minutes, _, seconds = duration.removesuffix("s").rpartition("m")
    return (int(minutes or 0) * 60 + int(seconds)) * 10**9


def tar_archive(uploads: list[dict[str, Any]]) -> bytes:
    """Return files as a tar archive that Docker unpacks at the root of a container."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for upload in uploads:
            content = upload["content"].encode()
            entry = tarfile.TarInfo(upload["file"].lstrip("/"))
            entry.size, entry.mode = len(content), int(upload["permissions"], 8)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def labels_of(inputs: dict[str, Any]) -> dict[str, str]:
    """Return the labels in a resource's arguments, by name."""
    return {label["label"]: label["value"] for label in inputs.get("labels", [])}
