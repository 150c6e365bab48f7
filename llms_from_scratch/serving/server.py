"""A server on this machine that other programs talk to; ``llms-from-scratch serve`` runs it."""

import ipaddress
import socket

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from llms_from_scratch.serving.access import Access, BodyTooLong, error_response
from llms_from_scratch.serving.engine import Busy, Engine
from llms_from_scratch.serving.labels import LabelEngine
from llms_from_scratch.serving.ollama import ollama_router
from llms_from_scratch.serving.openai import openai_router
from llms_from_scratch.serving.requests import ApiError, Service
from llms_from_scratch.serving.speaking import Speaker

MAX_BODY_BYTES = 2_000_000
RETRY_SECONDS = 2
STOP_SECONDS = 5  # for answers that are on their way when the server is stopped


def make_app(
    service: Service,
    *,
    host_names: tuple[str, ...] = (),
    api_key: str | None = None,
    max_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The web application: both protocols, ``/health``, and the rules of access."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages load from afar
    app.include_router(ollama_router(service))
    app.include_router(openai_router(service))

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return PlainTextResponse("Ollama is running")  # what its clients look for

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", **service.engine.load()}

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(request.url.path, error.status, str(error), error.code)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        wait = {"Retry-After": str(RETRY_SECONDS)}
        message = f"{error}: try again in {RETRY_SECONDS} seconds"
        return error_response(request.url.path, 503, message, headers=wait)

    @app.exception_handler(BodyTooLong)
    async def too_long(request: Request, error: BodyTooLong) -> Response:
        return error_response(request.url.path, 413, str(error))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error) -> Response:
        place = f"{request.method} {request.url.path:.200}"
        return error_response(request.url.path, error.status_code, f"there is no {place} here")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, 500, "the server has failed; its log says how")

    app.add_middleware(Access, names=host_names, api_key=api_key, max_bytes=max_bytes)
    return app


class Server(uvicorn.Server):
    """A server that ends its answers when it is stopped, so that it need not wait for them."""

    def __init__(self, app: FastAPI, engine: Engine | LabelEngine, **options):
        config = uvicorn.Config(
            app, lifespan="off", timeout_graceful_shutdown=STOP_SECONDS, **options
        )
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame) -> None:
        """The first signal ends the server in peace, the second one at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.engine.ask_to_stop()


def make_engine(speaker: Speaker, slots: int = 16, queue_size: int = 64) -> Engine | LabelEngine:
    """What answers for a model: a classifier, or one that writes."""
    if speaker.num_classes:
        return LabelEngine(speaker, queue_size)
    tokenizer, stop_ids = speaker.tokenizer, speaker.stop_ids
    return Engine(speaker.model, tokenizer, stop_ids, slots=slots, queue_size=queue_size)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ``ValueError`` if the address cannot be had, with the way out."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 (any free one) to 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=512)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"cannot listen on {host}, port {port} ({reason}): does another server, Ollama say, "
            "run there? Stop it, or choose another --port"
        ) from None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def greeting(service: Service, host: str, port: int, api_key: str | None) -> str:
    """What one reads when the server begins."""
    speaker, shown = service.speaker, f"[{host}]" if ":" in host else host
    lines = [
        f"{speaker.name} {speaker.kind}.",
        f"Ollama's protocol: http://{shown}:{port}/api/chat",
        f"OpenAI's protocol: http://{shown}:{port}/v1",
    ]
    if not is_loopback(host):
        lines.append(
            f"WARNING: {host} can be reached from other machines"
            + ("" if api_key else ", without a key (set --api-key or LLMS_FROM_SCRATCH_API_KEY)")
            + ". Nothing is encrypted."
        )
    return "\n".join([*lines, "Ctrl-C ends it."])
