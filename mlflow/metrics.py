"""Tells Prometheus what the server's workers have counted, on the port METRICS_PORT. Lives as long as the server does.

Its own start is the server's, which the workers do not tell: one that starts again and again would be one that is up.
"""

import os
import threading

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector


def main():
    """Serve until the container ends."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    start_http_server(int(os.environ["METRICS_PORT"]), registry=registry)
    threading.Event().wait()


if __name__ == "__main__":
    main()
