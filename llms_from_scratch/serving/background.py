"""A server in a thread of this process: for notebooks and tests, which go on meanwhile."""

import threading
from pathlib import Path

import torch

from llms_from_scratch.serving.requests import Service
from llms_from_scratch.serving.server import Server, listen, make_app, make_engine
from llms_from_scratch.serving.speaking import Speaker, load_speaker

STOP_WAIT = 20  # seconds


class BackgroundServer:
    """Serve a model on this machine until ``stop``, or to the end of a ``with``.

    ``model`` is a ``Speaker``, or what ``load_speaker`` takes. ``port=0`` is any free one; ``url``
    says which. ``aliases`` are other names to which the model answers. ``max_new_tokens`` is the
    length of an answer for which a request does not say it. ``access`` goes to ``make_app``.
    """

    def __init__(
        self,
        model: Speaker | str | Path,
        *,
        port: int = 0,
        slots: int = 8,
        queue_size: int = 64,
        aliases: tuple[str, ...] = (),
        max_new_tokens: int | None = None,
        device: torch.device | str = "cpu",
        **access,
    ):
        self.socket = listen("127.0.0.1", port)
        try:
            speaker = model if isinstance(model, Speaker) else load_speaker(model, device=device)
        except BaseException:
            self.socket.close()
            raise
        self.name = speaker.name
        self.engine = make_engine(speaker, slots, queue_size)
        app = make_app(Service(speaker, self.engine, aliases, max_new_tokens), **access)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = Server(app, self.engine, log_level="error")
        self.server.config.load()
        serve = self.server.run
        self.thread = threading.Thread(target=serve, args=([self.socket],), daemon=True)
        self.engine.start()
        self.thread.start()

    def stop(self) -> None:
        """End all answers and the server."""
        self.engine.ask_to_stop()
        self.server.should_exit = True
        self.thread.join(timeout=STOP_WAIT)
        self.engine.stop()
        self.socket.close()

    def __enter__(self) -> "BackgroundServer":
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()
