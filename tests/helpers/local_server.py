"""The server of a model, on a free port of this machine, in a thread of its own."""

import contextlib
import time

import requests

from llms_from_scratch.serving.background import BackgroundServer


@contextlib.contextmanager
def served(speaker, *, slots=8, queue_size=32, aliases=(), max_new_tokens=None, **access):
    """Serve a ``Speaker``; yields the base URL."""
    options = {"slots": slots, "queue_size": queue_size, "aliases": aliases}
    with BackgroundServer(speaker, max_new_tokens=max_new_tokens, **options, **access) as server:
        yield server.url


def wait_until_idle(url: str, seconds: float = 20) -> None:
    """Return when the server has no text in progress; ``AssertionError`` if that does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        load = requests.get(f"{url}/health", timeout=10).json()
        if load["running"] + load["waiting"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"the server is still busy after {seconds} s: {load}")
