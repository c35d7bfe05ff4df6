"""A steady load of requests, without retries: every request that fails is counted, every acknowledged write compared.

It does what clients and the web interface do: searches, batches of metrics, uploads, downloads, pages. As a program, it
prints the number of requests of each kind and their median time.
"""

import base64
import hashlib
import json
import os
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import urllib3

MEGABYTE = 1 << 20
BATCH = 20
"""Metrics in a batch."""
TIMEOUT_SECONDS = 60
PAUSE_SECONDS = 0.5
API = "/api/2.0/mlflow"


@dataclass
class Load:
    """Threads that send requests to one server, as a context manager. `failures` must stay empty."""

    port: int
    host: str
    password: str
    user: str = "mlflow"
    address: str = "127.0.0.1"
    upload_mb: int = 100
    light: int = 6
    """Threads that send requests of milliseconds."""
    heavy: int = 1
    """Threads that upload and download files."""
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    """Acknowledged batches by run."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each acknowledged upload."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        self._headers = {"Host": self.host, "Authorization": f"Basic {login}", "Accept": "*/*"}
        self._pool = urllib3.HTTPSConnectionPool(
            self.address, self.port, maxsize=self.light + self.heavy, ssl_context=context, retries=False
        )
        self._threads: list[threading.Thread] = []
        self.experiment = ""

    def ask(self, kind: str, method: str, path: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse | None:
        """Send one request; return its answer, or None if it failed, which is noted."""
        headers = self._headers | ({"Content-Type": "application/json"} if method == "POST" else {})
        started = time.monotonic()
        try:
            answer = self._pool.urlopen(
                method, path, body=body, headers=headers, timeout=TIMEOUT_SECONDS, redirect=False
            )
            wrong = "" if answer.status == 200 else f"HTTP {answer.status} {answer.data[:200]!r}"
        except urllib3.exceptions.HTTPError as error:
            answer, wrong = None, repr(error)
        with self._lock:
            self.counts[kind] += 1
            self.times.setdefault(kind, []).append(time.monotonic() - started)
            if wrong:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {kind}: {wrong}")
        if wrong:
            # As a client's retries do: a replica that is being killed may accept one more request at that moment.
            time.sleep(PAUSE_SECONDS)
        return None if wrong else answer

    def post(self, kind: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        answer = self.ask(kind, "POST", API + path, json.dumps(body).encode())
        return None if answer is None else dict(json.loads(answer.data))

    def __enter__(self) -> Self:
        """Start the threads."""
        created = self.post("setup", "/experiments/create", {"name": f"load {time.time()}"})
        assert created, self.failures
        self.experiment = created["experiment_id"]
        workers = [self._light] * self.light + [self._heavy] * self.heavy
        self._threads = [threading.Thread(target=worker, daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every request in flight end."""
        self._stop.set()
        for thread in self._threads:
            # A request may have begun just before.
            thread.join(2 * TIMEOUT_SECONDS)
            assert kind or not thread.is_alive(), "a request does not end"

    def until(self, requests: int, seconds: float) -> None:
        """Wait until that many more requests have been sent, for at most that long. Fails if hardly any was."""
        before, deadline = sum(self.counts.values()), time.monotonic() + seconds
        while (sent := sum(self.counts.values()) - before) < requests and time.monotonic() < deadline:
            time.sleep(0.2)
        assert sent >= requests / 4, f"only {sent} of {requests} requests were sent: too few to judge by"

    def _light(self) -> None:
        while not self._stop.is_set():
            created = self.post("create run", "/runs/create", {"experiment_id": self.experiment})
            if created is None:
                continue
            run = created["run"]["info"]["run_id"]
            for number in range(4):
                now = int(time.time() * 1000)
                metrics = [
                    {"key": "loss", "value": 0.5, "timestamp": now, "step": number * BATCH + step}
                    for step in range(BATCH)
                ]
                if self.post("log batch", "/runs/log-batch", {"run_id": run, "metrics": metrics}) is not None:
                    with self._lock:
                        self.batches[run] = self.batches.get(run, 0) + 1
                self.post("search runs", "/runs/search", {"experiment_ids": [self.experiment], "max_results": 5})
                self.ask("get run", "GET", f"{API}/runs/get?run_id={run}")
                self.ask("page", "GET", "/")
                self.ask("page: experiments", "GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=25")
                if self._stop.is_set():
                    return

    def _heavy(self) -> None:
        number = 0
        while not self._stop.is_set():
            content = os.urandom(MEGABYTE) * self.upload_mb
            path = f"load/{threading.get_ident()}-{number}.bin"
            number = (number + 1) % 3
            with self._lock:
                self.artifacts.pop(path, None)
            artifact = f"/api/2.0/mlflow-artifacts/artifacts/{path}"
            if self.ask("upload", "PUT", artifact, content) is not None:
                digest = hashlib.sha256(content).hexdigest()
                with self._lock:
                    self.artifacts[path] = digest
                answer = self.ask("download", "GET", artifact)
                if answer is not None and hashlib.sha256(answer.data).hexdigest() != digest:
                    self.failures.append(f"{path}: other bytes than were uploaded")

    def lost(self) -> list[str]:
        """Return the acknowledged writes that the server does not have."""
        missing = []
        for run, batches in self.batches.items():
            answer = self.ask("compare", "GET", f"{API}/metrics/get-history?run_id={run}&metric_key=loss")
            steps = [entry["step"] for entry in json.loads(answer.data).get("metrics", [])] if answer else []
            # A batch that was not acknowledged may have been written.
            if len(set(steps)) < batches * BATCH:
                missing.append(f"run {run}: {len(set(steps))} of {batches * BATCH} metrics")
        for path, digest in self.artifacts.items():
            answer = self.ask("compare", "GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}")
            if answer is None or hashlib.sha256(answer.data).hexdigest() != digest:
                missing.append(path)
        return missing

    def report(self) -> str:
        rows = [
            f"{kind:20} {number:6} {1000 * statistics.median(self.times[kind]):8.1f} ms"
            for kind, number in self.counts.items()
        ]
        return "\n".join([*rows, f"{len(self.failures)} failed", *self.failures[:20]])


if __name__ == "__main__":
    port, host, password, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    address = next((word.removeprefix("address=") for word in sys.argv[5:] if word.startswith("address=")), "127.0.0.1")
    sizes = {key: int(value) for key, value in (word.split("=") for word in sys.argv[5:] if "." not in word)}
    with Load(
        port,
        host,
        password,
        address=address,
        upload_mb=sizes.get("upload_mb", Load.upload_mb),
        light=sizes.get("light", Load.light),
        heavy=sizes.get("heavy", Load.heavy),
    ) as load:
        time.sleep(seconds)
    print(load.report(), f"{sum(load.counts.values()) / seconds:.1f} requests/s", sep="\n")
    print(f"lost: {load.lost() or 'nothing'}")
