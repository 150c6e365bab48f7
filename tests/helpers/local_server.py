"""The server of a model, on a free port of this machine, in a thread of its own."""

import contextlib
import threading
import time

import requests

from llms_from_scratch.serving.requests import Service
from llms_from_scratch.serving.server import Server, listen, make_app, make_engine


@contextlib.contextmanager
def served(speaker, *, slots=8, queue_size=32, aliases=(), max_new_tokens=None, **access):
    """Serve a ``Speaker``; yields the base URL, and has the engine in ``served.engine``."""
    engine = make_engine(speaker, slots, queue_size)
    app = make_app(Service(speaker, engine, aliases, max_new_tokens), **access)
    with listen("127.0.0.1", 0) as listening:
        server = Server(app, engine, log_level="error")
        server.config.load()
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        engine.start()
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            yield url
        finally:
            engine.ask_to_stop()
            server.should_exit = True
            thread.join(timeout=20)
            engine.stop()


def wait_until_idle(url: str, seconds: float = 20) -> None:
    """Return when the server has no text in progress; ``AssertionError`` if that does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        load = requests.get(f"{url}/health", timeout=10).json()
        if load["running"] + load["waiting"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"the server is still busy after {seconds} s: {load}")
