"""OpenAI's protocol: ``/v1/completions`` and ``/v1/chat/completions``.

Streamed answers are server-sent events. Fields that change a text are computed or refused.
Source: OpenAI's API reference.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from llms_from_scratch.generate import token_bytes
from llms_from_scratch.serving.access import error_body
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

Zero = Annotated[float, Field(ge=0, le=0)]
NewTokens = Annotated[int, Field(ge=1)]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class AskBody(Strict):
    """What both kinds of completion have in common."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: StopStrings | str | None = None
    seed: Seed | None = None
    temperature: Temperature | None = 1.0
    top_p: Share | None = 1.0
    n: Annotated[int, Field(ge=1, le=8)] | None = 1
    frequency_penalty: Zero | None = 0
    presence_penalty: Zero | None = 0
    logit_bias: Annotated[dict, Field(max_length=0)] | None = None
    # Who asks, and how it is billed or kept elsewhere
    user: str | None = None
    metadata: dict | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(AskBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionBody(AskBody):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: NewTokens | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    suffix: Literal[""] | None = None


def openai_router(service: Service) -> APIRouter:
    """The routes below ``/v1``."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict:
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict:
        service.check_model(name)
        return _model(service, name)

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatBody)
        service.check_model(body.model)
        ids = await service.encode([message.plain() for message in body.messages])
        wanted = body.max_completion_tokens or body.max_tokens
        top = (body.top_logprobs or 0) if body.logprobs else None
        jobs = _jobs(service, body, [ids], wanted, top)
        return await Answer(service, body, ChatForm(service.speaker.tokenizer), jobs).send(request)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionBody)
        service.check_model(body.model)
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not 1 <= len(prompts) <= 64:
            raise ApiError(400, f"prompt: give 1 to 64 of them, got {len(prompts)}")
        ids = [p if isinstance(p, list) else await service.encode_text(p) for p in prompts]
        jobs = _jobs(service, body, ids, body.max_tokens, body.logprobs)
        form = CompletionForm(service.speaker.tokenizer)
        return await Answer(service, body, form, jobs).send(request)

    return router


def _jobs(service: Service, body: AskBody, prompts, wanted: int | None, top) -> list[Job]:
    """``n`` jobs for each prompt; each has a seed of its own."""
    temperature = 1.0 if body.temperature is None else body.temperature
    sampling = sampling_of(temperature, None, body.top_p)
    stop = list_of_stops(body.stop)
    limit = service.limit(wanted)
    repeated = [ids for ids in prompts for _ in range(body.n or 1)]
    return [
        Job(ids, limit, sampling, None if body.seed is None else body.seed + i, stop, top)
        for i, ids in enumerate(repeated)
    ]


class Form:
    """How an answer is written down: chats and plain completions differ in this alone."""

    object: str
    prefix: str

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def whole(self, text: str) -> dict:
        raise NotImplementedError

    def piece(self, text: str, is_first: bool) -> dict:
        raise NotImplementedError

    def logprobs(self, tokens: list[Token]) -> dict:
        raise NotImplementedError

    def spell(self, token_id: int) -> tuple[str, bytes]:
        data = token_bytes(self.tokenizer, token_id)
        return data.decode("utf-8", errors="replace"), data


class ChatForm(Form):
    object, prefix = "chat.completion", "chatcmpl"

    def whole(self, text: str) -> dict:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def piece(self, text: str, is_first: bool) -> dict:
        return {"delta": ({"role": "assistant"} if is_first else {}) | {"content": text}}

    def last(self) -> dict:
        return {"delta": {}}

    def logprobs(self, tokens: list[Token]) -> dict:
        def described(token_id: int, logprob: float) -> dict:
            text, data = self.spell(token_id)
            return {"token": text, "logprob": logprob, "bytes": list(data)}

        return {
            "content": [
                described(token.token_id, token.logprob)
                | {"top_logprobs": [described(*pair) for pair in token.top]}
                for token in tokens
            ],
            "refusal": None,
        }


class CompletionForm(Form):
    object, prefix = "text_completion", "cmpl"

    def whole(self, text: str) -> dict:
        return {"text": text}

    def piece(self, text: str, is_first: bool) -> dict:
        return {"text": text}

    def last(self) -> dict:
        return {"text": ""}

    def logprobs(self, tokens: list[Token]) -> dict:
        texts = [self.spell(token.token_id)[0] for token in tokens]
        starts = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.spell(i)[0]: p for i, p in token.top} for token in tokens],
            "text_offset": starts,
        }


class Answer:
    """The answer to one request: one choice for each job."""

    def __init__(self, service: Service, body: AskBody, form: Form, jobs: list[Job]):
        self.service, self.body, self.form, self.jobs = service, body, form, jobs
        self.head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "object": form.object,
            "created": int(time.time()),
            "model": body.model,
        }
        unique = {id(job.prompt): len(job.prompt) for job in jobs}  # n choices share a prompt
        self.prompt_tokens = sum(unique.values())

    async def send(self, request: Request) -> Response:
        answers = self.service.submit(*self.jobs)
        if self.body.stream:
            return StreamedAnswers(self._stream(answers), answers, "text/event-stream")
        by_job = await answers.all(request)
        choices = [self._choice(number, events) for number, events in enumerate(by_job)]
        new_tokens = sum(events[-1].new_tokens for events in by_job)
        return JSONResponse(self.head | {"choices": choices, "usage": self._usage(new_tokens)})

    def _choice(self, number: int, events: list[Token | End]) -> dict:
        text = "".join(event.text for event in events)
        tokens = [event for event in events if isinstance(event, Token)]
        choice = {"index": number, **self.form.whole(text), "finish_reason": events[-1].reason}
        return choice | {"logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: list[Token]) -> dict | None:
        wanted = self.jobs[0].top_logprobs is not None
        return self.form.logprobs(tokens) if wanted and tokens else None

    def _usage(self, new_tokens: int) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": self.prompt_tokens + new_tokens,
        }

    async def _stream(self, answers: Answers) -> AsyncIterator[str]:
        begun, new_tokens = set(), 0
        try:
            async for number, event in answers:
                tokens = [event] if isinstance(event, Token) else []
                if event.text or self._logprobs(tokens):
                    piece = self.form.piece(event.text, number not in begun)
                    begun.add(number)
                    yield self._chunk(number, piece, tokens)
                if isinstance(event, End):
                    new_tokens += event.new_tokens
                    yield self._chunk(number, self.form.last(), [], event.reason)
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield self._event(choices=[], usage=self._usage(new_tokens))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error_body('/v1/', error.status, str(error)))}\n\n"

    def _chunk(self, number: int, content: dict, tokens: list[Token], reason=None) -> str:
        choice = {"index": number, **content, "finish_reason": reason}
        return self._event(choices=[choice | {"logprobs": self._logprobs(tokens)}])

    def _event(self, **content) -> str:
        kind = self.form.object + (".chunk" if isinstance(self.form, ChatForm) else "")
        return f"data: {json.dumps(self.head | {'object': kind} | content)}\n\n"


def _model(service: Service, name: str) -> dict:
    created = int(service.started.timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "llms-from-scratch"}
