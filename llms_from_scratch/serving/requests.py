"""From a request to jobs and back: what both protocols have in common."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from llms_from_scratch.generate import Sampling
from llms_from_scratch.serving.engine import End, Engine, Event, Failed, Job, Token
from llms_from_scratch.serving.labels import LabelEngine
from llms_from_scratch.serving.speaking import Speaker
from llms_from_scratch.weights.chat_formats import special_tokens_of

CHECK_SECONDS = 0.5  # how often one looks whether a client that waits is still there

Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopStrings = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=16)]


class ApiError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Strict(BaseModel):
    """A body in which nothing is ignored: unknown fields and wrong types are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")


Body = TypeVar("Body", bound=Strict)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body of a request, whatever its content type says.

    Raises ``ApiError`` for one that is no JSON, or not what ``kind`` wants, naming the first field.
    """
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise ApiError(400, describe(error)) from None


def describe(error: ValidationError) -> str:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"this server knows no field {place!r:.100}"
    return f"{place[:100]}: {first['msg']}" if place else f"the body: {first['msg']}"


def sampling_of(*numbers) -> Sampling:
    """``Sampling`` with these numbers; ``ApiError`` for those that choose nothing."""
    try:
        return Sampling(*numbers)
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def list_of_stops(stop: list[str] | str | None) -> list[str]:
    """Stop strings as a list: a request may have one, several, or none."""
    return [stop] if isinstance(stop, str) else stop or []


class Service:
    """A model, its engine, and the names that it answers to."""

    def __init__(
        self,
        speaker: Speaker,
        engine: Engine | LabelEngine,
        aliases: Sequence[str] = (),
        max_new_tokens: int | None = None,
    ):
        self.speaker, self.engine = speaker, engine
        self.aliases = tuple(aliases)
        self.max_new_tokens = max_new_tokens or speaker.context_length
        self.started = datetime.datetime.now(datetime.timezone.utc)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.speaker.name, *self.aliases)

    def check_model(self, name: str) -> None:
        """Raise ``ApiError`` 404 for a model that is not served here."""
        if name.removesuffix(":latest") not in self.names:
            raise ApiError(
                404,
                f"model {name!r:.100} is not served here; this server has: "
                f"{', '.join(self.names)} (another name for it: --alias)",
                "model_not_found",
            )

    def limit(self, wanted: int | None) -> int:
        """How many tokens an answer may have; ``ApiError`` for more than this server allows."""
        if wanted is not None and wanted > self.max_new_tokens:
            raise ApiError(
                400, f"at most {self.max_new_tokens} new tokens, {wanted} were asked for"
            )
        return wanted or self.max_new_tokens

    async def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return await self._in_thread(self.speaker.encode_messages, messages)

    async def encode_text(self, text: str) -> list[int]:
        """The ids of a plain text, without any template."""
        return await self._in_thread(self.speaker.tokenizer.encode_ordinary, text)

    async def encode_marked(self, text: str) -> list[int]:
        """The ids of a text in which ``<|im_start|>`` and the like are special tokens."""
        tokenizer = self.speaker.tokenizer
        marks = set(special_tokens_of(tokenizer))
        return await self._in_thread(partial(tokenizer.encode, allowed_special=marks), text)

    async def _in_thread(self, function, *args):
        """Long texts take a while: the others should not wait for them."""
        try:
            return await run_in_threadpool(function, *args)
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    def submit(self, *jobs: Job) -> "Answers":
        """Queue jobs; raises ``ApiError`` for one that cannot be done, and ``Busy``."""
        answers = Answers(self.engine, jobs)
        try:
            self.engine.submit(*jobs)
        except ValueError as error:
            code = "context_length_exceeded" if "reads at most" in str(error) else None
            raise ApiError(400, str(error), code) from None
        return answers


class Answers:
    """What becomes of some jobs: an asynchronous iterator of (number of the job, event)."""

    def __init__(self, engine: Engine | LabelEngine, jobs: Sequence[Job]):
        self.engine, self.jobs = engine, jobs
        self.running = len(jobs)
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        for number, job in enumerate(jobs):
            job.on_event = partial(self._tell, number)

    def _tell(self, number: int, event: Event) -> None:
        """Pass an event on from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

    def __aiter__(self) -> "Answers":
        return self

    async def __anext__(self) -> tuple[int, Token | End]:
        if not self.running:
            raise StopAsyncIteration
        number, event = await self._queue.get()
        if isinstance(event, Failed):
            raise ApiError(500, event.message)
        self.running -= isinstance(event, End)
        return number, event

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.engine.cancel(*self.jobs)

    async def all(self, request: Request) -> list[list[Token | End]]:
        """Wait for all events, sorted by job; a client that goes away ends the waiting."""
        events: list[list[Token | End]] = [[] for _ in self.jobs]
        watch = asyncio.create_task(self._watch(request))
        try:
            async for number, event in self:
                events[number].append(event)
        finally:
            watch.cancel()
            self.cancel()
        return events

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(CHECK_SECONDS)
        self.cancel()
        for number in range(len(self.jobs)):
            self._tell(number, Failed("the client has gone away"))


class StreamedAnswers(StreamingResponse):
    """A response that is sent piece by piece; when it ends, for whatever reason, so do its jobs."""

    def __init__(self, content: AsyncIterator[str], answers: Answers, media_type: str):
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-store"})
        self.answers = answers

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answers.cancel()
