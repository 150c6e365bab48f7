"""Many texts at a time from one model: each request joins and leaves between two steps.

One thread computes. A step shows the model one token of each text in progress, so that its weights
are read once for all of them, which is what a step costs on a CPU. New prompts are computed between
steps, in pieces, so that a long one does not hold up the others. (Yu et al., "Orca: A Distributed
Serving System for Transformer-Based Generative Models", 2022.)

Shapes: b = texts in progress, n = tokens of a piece, vocab_size = classes.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch

from llms_from_scratch.generate import Sampling, TextStream, cacheable, check_logits
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.slots import SlotCache

log = logging.getLogger(__name__)


class Busy(Exception):
    """More requests are waiting than the queue takes: try again later."""


@dataclass(frozen=True)
class Token:
    """One token of an answer, and the text that it completes (none within a character).

    ``logprob`` and ``top``, pairs of id and log-probability, are what the model itself says,
    whatever the temperature; None and empty unless they were asked for.
    """

    token_id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """The end of an answer: what text was held back, and how long each part took.

    ``reason`` is "stop" for a token or string that ends it, "length" for the most that was wanted
    or fits, "cancelled" if nobody wants it any more.
    """

    reason: str
    text: str
    new_tokens: int
    seconds: dict[str, float]  # "waiting", "prompt", "answer"


@dataclass(frozen=True)
class Failed:
    """No answer, and why not."""

    message: str


Event = Token | End | Failed


@dataclass
class Job:
    """One request: a prompt, how it goes on, and who is told of each token.

    ``on_event`` is called in the engine's thread, last with an ``End`` or ``Failed``.
    ``top_logprobs`` is how many alternatives each token comes with (None: no probabilities).
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    stop_strings: Collection[str] = ()
    top_logprobs: int | None = None
    on_event: Callable[[Event], None] = lambda event: None
    cancelled: bool = False  # nobody listens any more: the slot is free at the next token


class _Text:
    """A job in progress."""

    def __init__(self, job: Job, tokenizer, context_length: int, device: torch.device):
        self.job = job
        self.most = min(job.max_new_tokens, context_length - len(job.prompt))
        self.new_ids: list[int] = []
        self.stream = TextStream(tokenizer, job.stop_strings)
        self.generator = torch.Generator(device)
        if job.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(job.seed)
        self.submitted = time.perf_counter()
        self.started = self.first = self.submitted
        self.shown = 0  # tokens of the prompt that are in the cache
        self.cache: KVCache | None = None  # until it joins the others

    def end(self, reason: str) -> End:
        now = time.perf_counter()
        seconds = {
            "waiting": self.started - self.submitted,
            "prompt": self.first - self.started,
            "answer": now - self.first,
        }
        return End(reason, self.stream.rest(), len(self.new_ids), seconds)


class Engine:
    """Answers up to ``slots`` jobs together; ``queue_size`` more may wait, first come first served.

    Use it as a context manager, or call ``start`` and ``stop``. ``stop_ids`` end an answer and are
    no part of it. ``piece`` is how many tokens of prompts are computed between two steps.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer,
        stop_ids: Collection[int] = (),
        *,
        slots: int = 16,
        queue_size: int = 64,
        piece: int = 256,
    ):
        self.model, takes_cache = cacheable(model.eval())
        if not takes_cache:
            raise ValueError(f"{type(model).__name__} takes no cache: texts cannot share its steps")
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.queue_size, self.piece = queue_size, piece
        self.device = next(model.parameters()).device
        self.context_length = model.cfg["context_length"]
        self.cache = SlotCache.for_model(self.model, slots)
        self.waiting: deque[_Text] = deque()
        self.arriving: _Text | None = None  # the one whose prompt is being computed
        self.texts: list[_Text] = []  # in the order of the cache's rows
        self._news = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # --- What other threads call

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Let the thread end soon; jobs that are not finished fail with a message."""
        self._stopping = True  # no lock: a signal may find this thread within one

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, *jobs: Job) -> None:
        """Queue jobs, all or none.

        Raises ``Busy`` if too many wait, and ``ValueError`` for a prompt that is empty or leaves no
        room for an answer, and for other numbers that make no sense.
        """
        for job in jobs:
            self._check(job)
        texts = [_Text(job, self.tokenizer, self.context_length, self.device) for job in jobs]
        with self._news:
            if self._stopping or self._thread is None:
                raise Busy("the server is stopping")
            free = self.cache.slots - len(self.texts) - (self.arriving is not None)
            if len(self.waiting) + len(jobs) > self.queue_size + free:
                raise Busy(f"{len(self.waiting)} requests are waiting already")
            self.waiting.extend(texts)
            self._news.notify()

    def cancel(self, *jobs: Job) -> None:
        """Forget jobs; their slots are free at the next step."""
        with self._news:
            for job in jobs:
                job.cancelled = True
            self._news.notify()

    def stream(self, job: Job) -> Iterator[Token | End]:
        """Submit a job and yield its events; for code that waits in a thread of its own.

        Raises what ``submit`` does, and ``RuntimeError`` if the job fails. A caller that stops
        listening cancels it.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job.on_event = events.put
        self.submit(job)
        try:
            while True:
                event = events.get()
                if isinstance(event, Failed):
                    raise RuntimeError(event.message)
                yield event
                if isinstance(event, End):
                    return
        finally:
            self.cancel(job)

    def load(self) -> dict[str, int]:
        """How many texts are in progress and waiting, and how many slots there are."""
        running = len(self.texts) + (self.arriving is not None)
        return {"running": running, "waiting": len(self.waiting), "slots": self.cache.slots}

    def _check(self, job: Job) -> None:
        vocab_size = self.model.tok_emb.num_embeddings
        if not job.prompt:
            raise ValueError("the prompt is empty: generation needs a token to start from")
        if len(job.prompt) >= self.context_length:
            raise ValueError(
                f"the prompt has {len(job.prompt)} tokens, the model reads at most "
                f"{self.context_length} with its answer: make it shorter"
            )
        if not 0 <= min(job.prompt) <= max(job.prompt) < vocab_size:
            raise ValueError(f"the prompt has token ids outside of 0 to {vocab_size - 1}")
        if job.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {job.max_new_tokens}")

    # --- The thread that computes

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_cancelled()
                self._take_in_prompts()
                if self.texts:
                    self._step()
            except Exception as error:  # of any kind: the server must go on, and say so
                log.exception("a step failed")
                self._fail_all(str(error))
        self._fail_all("the server is stopping")

    def _wait_for_work(self) -> bool:
        with self._news:
            while not (self._stopping or self.waiting or self.arriving or self.texts):
                self._news.wait(timeout=1.0)  # to see that it should stop
            return not self._stopping

    def _drop_cancelled(self) -> None:
        with self._news:
            gone = [text for text in self.waiting if text.job.cancelled]
            self.waiting = deque(text for text in self.waiting if not text.job.cancelled)
        if self.arriving and self.arriving.job.cancelled:
            gone.append(self.arriving)
            self.arriving = None
        for row in reversed(range(len(self.texts))):
            if self.texts[row].job.cancelled:
                gone.append(self.texts[row])
                self._remove(row)
        for text in gone:
            text.job.on_event(text.end("cancelled"))

    def _take_in_prompts(self) -> None:
        """Compute up to ``piece`` tokens of prompts."""
        budget = self.piece
        while budget > 0 and (self.arriving or self._next_arrives()):
            text = self.arriving
            ids = text.job.prompt[text.shown : text.shown + budget]
            shown = torch.tensor([ids], device=self.device)  # (1, n)
            logits = self.model(shown, cache=text.cache, last_only=True)[:, -1]
            text.shown += len(ids)
            budget -= len(ids)
            if text.shown == len(text.job.prompt):
                text.first = time.perf_counter()
                goes_on = self._extend([text], logits.float())
                self.arriving = None
                if goes_on == [True]:
                    self.cache.join(text.cache)
                    self.texts.append(text)
                text.cache = None

    def _next_arrives(self) -> bool:
        with self._news:
            if not self.waiting or len(self.texts) >= self.cache.slots:
                return False
            self.arriving = self.waiting.popleft()
        self.arriving.started = time.perf_counter()
        self.arriving.cache = KVCache.for_model(self.model, len(self.arriving.job.prompt))
        return True

    def _step(self) -> None:
        """One more token for each text in progress."""
        last = [text.new_ids[-1] for text in self.texts]
        shown = torch.tensor(last, device=self.device)[:, None]  # (b, 1)
        logits = self.model(shown, cache=self.cache, last_only=True)[:, -1].float()
        goes_on = self._extend(self.texts, logits)
        for row in reversed(range(len(self.texts))):
            if not goes_on[row]:
                self._remove(row)

    def _extend(self, texts: list[_Text], logits: torch.Tensor) -> list[bool]:
        """Give each text the token that its logits (b, vocab_size) lead to; which of them go on."""
        check_logits(logits)
        best = logits.argmax(dim=-1).tolist()  # all at once, for most texts need no more
        return [self._add(text, *pair) for text, *pair in zip(texts, logits, best, strict=True)]

    def _add(self, text: _Text, logits: torch.Tensor, best: int) -> bool:
        """One token more, from logits (vocab_size,); False if the text ends with or before it."""
        job, token_id = text.job, best
        if job.sampling.temperature or job.sampling.repetition_penalty != 1:
            ids = [torch.tensor(job.prompt + text.new_ids, device=self.device)]
            chosen = job.sampling.choose(logits[None], lambda: ids, [text.generator])
            token_id = chosen.item()
        if token_id in self.stop_ids:
            job.on_event(text.end("stop"))
            return False
        text.new_ids.append(token_id)
        piece = text.stream.add(token_id)
        job.on_event(Token(token_id, piece, *_probabilities(job, logits, token_id)))
        if text.stream.stopped or len(text.new_ids) == text.most:
            job.on_event(text.end("stop" if text.stream.stopped else "length"))
            return False
        return True

    def _remove(self, row: int) -> None:
        """Let a text leave; the last one takes its row, as in the cache."""
        self.cache.leave(row)
        last = self.texts.pop()
        if row < len(self.texts):
            self.texts[row] = last

    def _fail_all(self, message: str) -> None:
        with self._news:
            texts = [*self.texts, *filter(None, [self.arriving]), *self.waiting]
            self.texts, self.arriving, self.waiting = [], None, deque()
        self.cache.reset()
        for text in texts:
            text.job.on_event(Failed(message))


def _probabilities(job: Job, logits: torch.Tensor, token_id: int) -> tuple:
    """Log-probability of the token, and pairs of id and log-probability of the likeliest ones."""
    if job.top_logprobs is None:
        return None, ()
    logprobs = logits.log_softmax(dim=-1)  # (vocab_size,)
    values, ids = logprobs.topk(job.top_logprobs)
    return logprobs[token_id].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True))
