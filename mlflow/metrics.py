"""Serves the metrics of the server's workers on the port METRICS_PORT. Starts and ends with the server.

Its own start time stands for the server's, which the workers do not export: without it, a restart loop looks healthy.
"""

import os
import threading
from pathlib import Path

from healthcheck import oom_kills
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

MADE = Path("/.dockerenv")
"""Docker writes this file when it creates a container, not when it starts one."""


class ContainerCollector:
    """Collects the metrics of the container."""

    def collect(self):
        """Yield the metrics."""
        kills = "Processes that the kernel killed because the server's container had no memory left, since its start."
        yield GaugeMetricFamily("mlflow_oom_kills", kills, value=oom_kills())
        if MADE.exists():
            made = "Unix time of the creation of the server's container. Changes with a deployment, not with a restart."
            yield GaugeMetricFamily("mlflow_container_created_timestamp_seconds", made, value=MADE.stat().st_ctime)


def main():
    """Serve the metrics until the container ends."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    registry.register(ContainerCollector())
    certificate, key = os.environ.get("CERTIFICATE"), os.environ.get("KEY")
    start_http_server(int(os.environ["METRICS_PORT"]), registry=registry, certfile=certificate, keyfile=key)
    threading.Event().wait()


if __name__ == "__main__":
    main()
