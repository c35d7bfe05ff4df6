"""Runs uvicorn as `python -m uvicorn` does, with workers that sleep while nobody asks.

usage: python -m idle [OPTION OF UVICORN]...

uvicorn's workers wake up ten times a second: to refresh the `Date` header once a second, and to notice a stop signal.
In an idle stack that is half of the server's CPU time (docs/performance.md). Here a worker sleeps a second at
a time, and the stop signal wakes it up.

preloaded.py imports this module. With job execution, uvicorn starts each worker as a new Python process, which imports
it as its main module.
"""

import asyncio

import uvicorn

TICKS = 10
"""uvicorn's ticks in `SECONDS`. It acts on every tenth."""
SECONDS = 1.0
signal_handler = uvicorn.Server.handle_exit


async def main_loop(server):
    """Wait for the stop signal, and call uvicorn's `on_tick` once a second."""
    server.loop = asyncio.get_running_loop()
    # Last, because a signal can arrive between the two.
    server.wake = asyncio.Event()
    counter = 0
    while not await server.on_tick(counter):
        counter += TICKS
        try:
            await asyncio.wait_for(server.wake.wait(), SECONDS)
        except TimeoutError:
            continue


def handle_exit(server, number, frame):
    """Do what uvicorn does at a signal, and wake up `main_loop`. A signal can arrive before that has begun."""
    signal_handler(server, number, frame)
    if hasattr(server, "wake"):
        server.loop.call_soon_threadsafe(server.wake.set)


uvicorn.Server.main_loop = main_loop
uvicorn.Server.handle_exit = handle_exit

if __name__ == "__main__":
    uvicorn.main()
