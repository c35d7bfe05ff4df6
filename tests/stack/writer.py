"""A client that writes while a stack changes: it repeats what fails, and remembers what was acknowledged."""

import base64
import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import urllib3

API = "/api/2.0/mlflow"
PAUSE_SECONDS = 0.2


class Writer:
    """A thread that creates runs with metrics and an artifact, as a context manager.

    `password` is asked for again when a request is refused: a person would get the new one then.
    """

    def __init__(self, url: str, host: str, user: str, password: Callable[[], str]) -> None:
        """Write to `url`, with the header `Host: host`."""
        self.url, self.host, self.user, self._ask = url, host, user, password
        self.runs: dict[str, str] = {}
        """Acknowledged runs, each with the SHA-256 of its artifact."""
        self.away: list[tuple[float, float]] = []
        """When requests failed: from the first failure to the next success, in seconds since the start."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        # The certificate of Traefik is self-signed, and changes meanwhile.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=10)
        self._password = password()
        self._began = time.monotonic()
        self._failing_since: float | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failing_since is not None:
            self.away.append((self._failing_since - self._began, time.monotonic() - self._began))

    @property
    def writes(self) -> bool:
        """Whether the last attempt succeeded."""
        return self._failing_since is None

    def asked(self, method: str, path: str, body: Any = None) -> bytes:  # noqa: ANN401 - JSON, or bytes
        """Send one request; raise `ConnectionError` if it has no answer, or another one than success."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        login = base64.b64encode(f"{self.user}:{self._password}".encode()).decode()
        headers = {"Host": self.host, "Authorization": f"Basic {login}", "Content-Type": "application/json"}
        try:
            answer = self._pool.request(method, f"{self.url}{path}", body=raw, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(str(error)) from error
        if answer.status == 401:
            # The command may find the stack file half written: a person types it again, too.
            with suppress(AssertionError):
                self._password = self._ask()
        if answer.status != 200:
            raise ConnectionError(f"HTTP {answer.status}: {answer.data[:200]!r}")
        return bytes(answer.data)

    def _write(self) -> None:
        while not self._stop.is_set():
            content = os.urandom(50_000)
            try:
                run = self._run(content)
            except ConnectionError:
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
            else:
                self.runs[run] = hashlib.sha256(content).hexdigest()
                if self._failing_since is not None:
                    self.away.append((self._failing_since - self._began, time.monotonic() - self._began))
                    self._failing_since = None
            time.sleep(PAUSE_SECONDS)

    def _run(self, content: bytes) -> str:
        """Create one run. It counts as acknowledged when every request of it was."""
        made = json.loads(self.asked("POST", f"{API}/runs/create", {"experiment_id": "0", "start_time": 1}))
        run: str = made["run"]["info"]["run_id"]
        metrics = [{"key": "m", "value": step, "timestamp": step, "step": step} for step in range(10)]
        self.asked("POST", f"{API}/runs/log-batch", {"run_id": run, "metrics": metrics})
        self.asked("PUT", self._artifact(run), content)
        return run

    @staticmethod
    def _artifact(run: str) -> str:
        return f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/data.bin"

    def lost(self) -> list[str]:
        """Return the acknowledged runs that are not complete, by what is missing."""
        missing = []
        for run, digest in self.runs.items():
            found = json.loads(self.asked("GET", f"{API}/metrics/get-history?run_id={run}&metric_key=m"))
            if len(found.get("metrics", [])) != 10:
                missing.append(f"{run}: metrics")
            if hashlib.sha256(self.asked("GET", self._artifact(run))).hexdigest() != digest:
                missing.append(f"{run}: artifact")
        return missing
