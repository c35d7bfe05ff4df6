"""Tells Prometheus what the server's workers have counted, on the port METRICS_PORT. Lives as long as the server does.

Its own start is the server's, which the workers do not tell: one that starts again and again would be one that is up.
"""

import os
import threading
from pathlib import Path

from healthcheck import oom_kills
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

MADE = Path("/.dockerenv")
"""Docker writes it when it makes a container, and not when it starts one."""


class ContainerCollector:
    """What the container tells of itself."""

    def collect(self):
        """Yield its metrics."""
        kills = "Processes of the server's container that the kernel has killed for want of memory, since it started."
        yield GaugeMetricFamily("mlflow_oom_kills", kills, value=oom_kills())
        if MADE.exists():
            made = "When the server's container was made. A deployment makes another, a restart does not."
            yield GaugeMetricFamily("mlflow_container_created_timestamp_seconds", made, value=MADE.stat().st_ctime)


def main():
    """Serve until the container ends."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    registry.register(ContainerCollector())
    start_http_server(int(os.environ["METRICS_PORT"]), registry=registry)
    threading.Event().wait()


if __name__ == "__main__":
    main()
