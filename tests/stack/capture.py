"""A record of every packet between the containers of this host."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CAN_CAPTURE = os.geteuid() == 0 and sys.platform == "linux"
RECORD = """
import socket, sys
ALL_PROTOCOLS, FORCE_BUFFER = 3, 33
found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
found.setsockopt(socket.SOL_SOCKET, FORCE_BUFFER, 256 << 20)
with open(sys.argv[1], "wb", buffering=1 << 20) as file:
    print("recording", flush=True)
    while True:
        packet, address = found.recvfrom(65536)
        # Bridges and their ports; not the host's loopback interface, where clients of the published ports are.
        if address[0] != "lo":
            file.write(packet[54:])
            file.flush()
"""
"""Writes the payload of every packet: from 54 bytes on, behind the headers of Ethernet, IP and TCP."""


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Record the packets of the block into the file `path`."""
    with subprocess.Popen([sys.executable, "-c", RECORD, path], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "recording\n"
        try:
            yield
            time.sleep(1)
        finally:
            running.kill()
