"""Ollama's protocol: ``/api/chat``, ``/api/generate`` and what goes with them.

Streamed answers are lines of JSON. Options that change how a text is made are computed or refused;
those that only tell Ollama how to use its machine (``num_gpu`` ...) make no difference here.
Source: the API reference of Ollama.
"""

import datetime
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from llms_from_scratch import __version__
from llms_from_scratch.generate import token_bytes
from llms_from_scratch.serving.engine import End, Job, Token
from llms_from_scratch.serving.requests import (
    Answers,
    ApiError,
    Seed,
    Service,
    Share,
    StopStrings,
    StreamedAnswers,
    Strict,
    Temperature,
    list_of_stops,
    read_body,
    sampling_of,
)

TOP_K, TOP_P, TEMPERATURE = 40, 0.9, 0.8  # Ollama's defaults


class Options(Strict):
    seed: Seed | None = None
    temperature: Temperature = TEMPERATURE
    top_k: Annotated[int, Field(ge=0)] = TOP_K
    top_p: Share = TOP_P
    min_p: Share | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    num_predict: Annotated[int, Field(ge=-2)] = -1  # below 0: until the context is full
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    stop: StopStrings | str = []
    # How Ollama uses its machine
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    numa: bool | None = None


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class AskBody(Strict):
    """What chat and generate have in common."""

    model: str
    stream: bool = True
    options: Options | None = None
    keep_alive: str | float | None = None  # the model is never unloaded
    think: Literal[False] | None = None
    format: Literal[""] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


class ChatBody(AskBody):
    messages: list[Message] = []
    tools: Annotated[list, Field(max_length=0)] | None = None


class GenerateBody(AskBody):
    prompt: str = ""
    system: str | None = None
    raw: bool = False


class ShowBody(Strict):
    model: str | None = None
    name: str | None = None  # what it was called in older versions
    verbose: bool | None = None


def ollama_router(service: Service) -> APIRouter:
    """The routes below ``/api``."""
    router = APIRouter(prefix="/api")
    speaker = service.speaker

    @router.post("/chat")
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatBody)
        service.check_model(body.model)
        if not body.messages:  # how a client asks Ollama to load a model
            return JSONResponse(_line(body, {"message": _message("")}, "load"))
        ids = await service.encode([message.model_dump() for message in body.messages])
        return await answer(request, body, ids, lambda text: {"message": _message(text)})

    @router.post("/generate")
    async def generate(request: Request) -> Response:
        body = await read_body(request, GenerateBody)
        service.check_model(body.model)
        if not body.prompt:
            return JSONResponse(_line(body, {"response": ""}, "load"))
        if body.raw:  # the client writes the marks of the template itself
            ids = await service.encode_marked((body.system or "") + body.prompt)
        elif not (speaker.turns or speaker.style):
            ids = await service.encode_text((body.system or "") + body.prompt)
        else:
            messages = [{"role": "system", "content": body.system}] if body.system else []
            ids = await service.encode([*messages, {"role": "user", "content": body.prompt}])
        return await answer(request, body, ids, lambda text: {"response": text})

    async def answer(request: Request, body: AskBody, ids: list[int], form) -> Response:
        answers = service.submit(_job(service, body, ids))
        if body.stream:
            lines = _stream(answers, body, form, len(ids), speaker.tokenizer)
            return StreamedAnswers(lines, answers, "application/x-ndjson")
        (events,) = await answers.all(request)
        text = "".join(event.text for event in events)
        tokens = [event for event in events if isinstance(event, Token)]
        extra = {}
        if body.logprobs:
            extra["logprobs"] = [_logprob(token, speaker.tokenizer) for token in tokens]
        return JSONResponse(_line(body, form(text) | extra, events[-1], len(ids)))

    @router.get("/tags")
    async def tags() -> dict:
        return {"models": [_described(service, name) for name in service.names]}

    @router.get("/ps")
    async def ps() -> dict:
        return await tags()

    @router.post("/show")
    async def show(request: Request) -> dict:
        body = await read_body(request, ShowBody)
        service.check_model(body.model or body.name or "")
        info = {
            "general.architecture": speaker.model_type,
            "general.parameter_count": _parameters(service),
            f"{speaker.model_type}.context_length": speaker.context_length,
        }
        return {
            "modelfile": "",
            "parameters": "",
            "template": speaker.template,
            "details": _described(service, speaker.name)["details"],
            "model_info": info,
            "capabilities": ["completion"],
        }

    @router.get("/version")
    async def version() -> dict:
        return {"version": __version__}

    return router


def _job(service: Service, body: AskBody, ids: list[int]) -> Job:
    options = body.options or Options()
    limit = service.limit(options.num_predict if options.num_predict > 0 else None)
    if options.num_ctx is not None:
        if len(ids) >= options.num_ctx:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens, and num_ctx {options.num_ctx} allows so many "
                "with the answer: make one shorter, or the other larger",
            )
        limit = min(limit, options.num_ctx - len(ids))
    sampling = sampling_of(
        options.temperature, options.top_k, options.top_p, options.min_p, options.repeat_penalty
    )
    stop = list_of_stops(options.stop)
    top = body.top_logprobs if body.logprobs else None
    return Job(ids, limit, sampling, options.seed, stop, top)


async def _stream(answers: Answers, body: AskBody, form, n: int, tokenizer) -> AsyncIterator[str]:
    try:
        async for _, event in answers:
            if isinstance(event, Token):
                line = form(event.text)
                if body.logprobs:
                    line["logprobs"] = [_logprob(event, tokenizer)]
                elif not event.text:
                    continue
                yield json.dumps(_line(body, line)) + "\n"
            else:
                if event.text:
                    yield json.dumps(_line(body, form(event.text))) + "\n"
                yield json.dumps(_line(body, form(""), event, n)) + "\n"
    except ApiError as error:
        yield json.dumps({"error": str(error)}) + "\n"


def _line(body: AskBody, content: dict, end: End | str | None = None, prompt_tokens=0) -> dict:
    """One object of an answer; the last one has counts and durations in nanoseconds."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
    line = {"model": body.model, "created_at": now, **content, "done": end is not None}
    if isinstance(end, str):
        line["done_reason"] = end
    elif end is not None:
        nanoseconds = {name: int(seconds * 1e9) for name, seconds in end.seconds.items()}
        line |= {
            "done_reason": end.reason,
            "total_duration": sum(nanoseconds.values()),
            "load_duration": nanoseconds["waiting"],
            "prompt_eval_count": prompt_tokens,
            "prompt_eval_duration": nanoseconds["prompt"],
            "eval_count": end.new_tokens,
            "eval_duration": nanoseconds["answer"],
        }
    return line


def _message(text: str) -> dict:
    return {"role": "assistant", "content": text}


def _logprob(token: Token, tokenizer) -> dict:
    def described(token_id: int, logprob: float) -> dict:
        data = token_bytes(tokenizer, token_id)
        return {
            "token": data.decode("utf-8", errors="replace"),
            "logprob": logprob,
            "bytes": list(data),
        }

    top = [described(*pair) for pair in token.top]
    return described(token.token_id, token.logprob) | ({"top_logprobs": top} if top else {})


def _parameters(service: Service) -> int:
    return sum(p.numel() for p in service.speaker.model.parameters())


def _described(service: Service, name: str) -> dict:
    model = service.speaker.model
    size = sum(p.nbytes for p in model.parameters())
    return {
        "name": f"{name}:latest",
        "model": f"{name}:latest",
        "modified_at": service.started.isoformat(),
        "size": size,
        "digest": "",
        "details": {
            "parent_model": "",
            "format": "pytorch",
            "family": service.speaker.model_type,
            "families": [service.speaker.model_type],
            "parameter_size": f"{_parameters(service) / 1e6:.1f}M",
            "quantization_level": str(next(model.parameters()).dtype).removeprefix("torch."),
        },
    }
