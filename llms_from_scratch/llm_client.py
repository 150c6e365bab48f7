"""Asking a language model on a server, one question or thousands: Ollama's protocol and OpenAI's.

``query_model`` and ``query_openai`` ask one question, and ask again after an error that may pass.
``ask_all`` asks many at a time and keeps each answer in a file at once, so that a run which was
stopped, or killed, goes on where it was. A ``Budget`` limits calls and tokens.
"""

import contextlib
import email.utils
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from tqdm import tqdm

OLLAMA_URL = "http://localhost:11434/api/chat"
OLLAMA_RAW_URL = "http://localhost:11434/api/generate"
OPENAI_URL = "http://localhost:8000/v1/chat/completions"
CONNECT_SECONDS = 10.0  # until a server must accept the connection
REPEATABLE = {"seed": 123, "temperature": 0}  # the same question gets the same answer
OLLAMA_OPTIONS = REPEATABLE | {"num_ctx": 2048}  # tokens of the question and the answer
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that a second try may mend


class JudgeError(RuntimeError):
    """The server gave no usable answer to one question; another one may go better."""

    is_final = False  # whether the same question would fail again
    pause: float | None = None  # seconds after which the server wants to be asked again


class JudgeUnavailableError(JudgeError):
    """There is no server, or it does not have the model: no question will be answered."""


class BudgetSpentError(JudgeUnavailableError):
    """As many calls or tokens as were allowed have been used."""


@dataclass
class Budget:
    """How much may be asked: ``None`` is without a limit. One may be shared by threads.

    Each try is a call, also one that fails. Tokens are counted as the server reports them, after
    each answer, so the last answers may exceed the limit, and no question is asked from then on.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    calls: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take_call(self) -> None:
        """Count one call; raises ``BudgetSpentError`` if there is none left."""
        with self._lock:
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise BudgetSpentError(
                    f"the budget of {self.max_calls} calls is spent: raise it, and resume"
                )
            if self.max_tokens is not None and self.tokens >= self.max_tokens:
                raise BudgetSpentError(
                    f"the budget of {self.max_tokens} tokens is spent ({self.tokens} were used): "
                    "raise it, and resume"
                )
            self.calls += 1

    def add_tokens(self, tokens: int) -> None:
        with self._lock:
            self.tokens += tokens


# --- One question


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    timeout: float = 300.0,
    retries: int = 2,
    pause: float = 1.0,
    budget: Budget | None = None,
    system: str | None = None,
    options: dict | None = None,
) -> str:
    """Ask a model of an Ollama server, and return its whole answer (section 7.8).

    ``timeout`` is for one answer, in seconds; the first takes longer, since the server loads the
    model. After an error that may pass, the question is asked up to ``retries`` times more, first
    after ``pause`` seconds, then after twice as many, or after as many as the server asks for
    (``Retry-After``). Raises ``JudgeUnavailableError`` if there is no server or no such model (the
    message says what to do), and ``JudgeError`` otherwise.

    ``system`` is said to the model before the question. ``options`` are Ollama's, for example
    ``num_predict``, the most tokens of an answer; without them, the same question gets the same
    answer.
    """
    request = {
        "model": model,
        "messages": _messages(prompt, system),
        "options": OLLAMA_OPTIONS | (options or {}),  # seed and temperature count only in here
    }
    return _ask_ollama(request, url, timeout).ask(retries, pause, budget or Budget())


def query_raw(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_RAW_URL,
    timeout: float = 300.0,
    retries: int = 2,
    pause: float = 1.0,
    budget: Budget | None = None,
    options: dict | None = None,
) -> str:
    """What a model of an Ollama server writes after ``prompt``, around which no template is put.

    The prompt may hold the marks of the model's template, ``<|im_start|>`` say. Otherwise like
    ``query_model``.
    """
    request = {"model": model, "prompt": prompt, "raw": True}
    request["options"] = OLLAMA_OPTIONS | (options or {})
    return _ask_ollama(request, url, timeout).ask(retries, pause, budget or Budget())


def _messages(prompt: str, system: str | None) -> list[dict]:
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def _ask_ollama(request: dict, url: str, timeout: float) -> "_Exchange":
    model = request["model"]
    no_server = (
        f"no Ollama server answers at {url}: start the Ollama app or run `ollama serve`, then "
        f"`ollama pull {model}`"
    )
    no_model = f"the server has no model {model!r}: run `ollama pull {model}`, or name another one"
    return _Exchange(url, request, {}, _read_stream, no_server, no_model, timeout)


def query_openai(
    prompt: str,
    model: str,
    url: str = OPENAI_URL,
    api_key: str | None = None,
    timeout: float = 300.0,
    retries: int = 2,
    pause: float = 1.0,
    budget: Budget | None = None,
    system: str | None = None,
    options: dict | None = None,
) -> str:
    """Ask a model of a server that speaks OpenAI's protocol; otherwise like ``query_model``.

    ``options`` are further fields of the request, for example ``max_completion_tokens``. Take the
    key from an environment variable. It is in no message, also if the server repeats it.
    """
    request = {
        "model": model,
        "messages": _messages(prompt, system),
        **(REPEATABLE | (options or {})),
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    no_server = f"no server answers at {url}: start one, or give the right URL"
    no_model = f"the server has no model {model!r}, or it speaks another protocol at {url}"
    exchange = _Exchange(url, request, headers, _read_choice, no_server, no_model, timeout)
    return exchange.ask(retries, pause, budget or Budget())


@dataclass(frozen=True)
class _Exchange:
    """One question and what to say if it fails; ``read`` takes text and tokens of the answer."""

    url: str
    request: dict
    headers: dict
    read: Callable[[requests.Response, float], tuple[str, int]]
    no_server: str
    no_model: str
    timeout: float

    def ask(self, retries: int, pause: float, budget: Budget) -> str:
        """The answer's text, after several tries if need be."""
        for attempt in range(retries + 1):
            budget.take_call()
            try:
                text, tokens = self._try()
                budget.add_tokens(tokens)
                return text
            except JudgeUnavailableError:
                raise
            except JudgeError as error:
                failure, wanted = str(error), error.pause
                if wanted is not None and wanted > self.timeout:
                    failure += f"; it wants to be asked again in {wanted:.0f} seconds"
                    break
                if error.is_final:
                    break
            if attempt < retries:
                time.sleep(pause * 2**attempt if wanted is None else wanted)
        raise JudgeError(self._without_key(f"{self.url}: {failure}"))

    def _try(self) -> tuple[str, int]:
        try:
            return _within(self.timeout, self._post)
        except (requests.RequestException, TimeoutError) as error:
            if "NewConnectionError" in repr(error) or isinstance(error, requests.ConnectTimeout):
                raise JudgeUnavailableError(self.no_server) from None  # no connection at all
            if isinstance(error, ValueError) and not isinstance(error, requests.ConnectionError):
                raise JudgeUnavailableError(f"{self.url} is no usable URL: {error}") from None
            in_time = not isinstance(error, TimeoutError | requests.Timeout)
            in_time = in_time and "timed out" not in str(error)
            raise JudgeError(
                "the answer was cut" if in_time else f"no whole answer in {self.timeout:g} seconds"
            ) from None

    def _post(self) -> tuple[str, int]:
        """One try: text and tokens of the answer. Raises what ``ask`` makes of other replies."""
        deadline = time.monotonic() + self.timeout
        timeouts = (min(CONNECT_SECONDS, self.timeout), self.timeout)
        with requests.post(
            self.url, json=self.request, headers=self.headers, stream=True, timeout=timeouts
        ) as response:
            status = response.status_code
            if status == 200:
                return self.read(response, deadline)
            if status == 404:
                raise JudgeUnavailableError(f"{self.no_model} (HTTP status 404)")
            if status in (401, 403):
                raise JudgeUnavailableError(
                    f"{self.url} refuses the API key (HTTP status {status})"
                )
            error = JudgeError(f"HTTP status {status}: {response.text[:200]}")
            error.is_final = status not in TEMPORARY
            error.pause = read_retry_after(response.headers.get("Retry-After"))
            raise error

    def _without_key(self, message: str) -> str:
        """A message in which the server does not repeat what it was sent as a key."""
        for value in self.headers.values():
            message = message.replace(value.rpartition(" ")[2], "***")
        return message


def read_retry_after(value: str | None) -> float | None:
    """The seconds to wait of a header ``Retry-After``, which has them or a date (RFC 9110).

    ``None`` if there is none, or nothing that can be read.

    >>> read_retry_after("2.5"), read_retry_after("soon"), read_retry_after(None)
    (2.5, None, None)
    >>> read_retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
    0.0
    """
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with contextlib.suppress(ValueError, TypeError):
        when = email.utils.parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - time.time())
    return None


def _within(seconds: float, work: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    """What ``work`` returns or raises, or a ``TimeoutError`` after so many seconds.

    A socket's own limit begins anew with each byte, so a server that sends one now and then, even
    of its headers, can take any time. Hence the work is done in a thread, which is left behind.
    """
    results: list[tuple[str, int]] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    deadline = time.monotonic() + seconds
    thread.start()
    while thread.is_alive() and (rest := deadline - time.monotonic()) > 0:
        thread.join(min(rest, 0.2))  # on Windows, Ctrl-C waits for the end of a join
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _read_stream(response: requests.Response, deadline: float) -> tuple[str, int]:
    """The text of Ollama's stream: one JSON object a line, the last of them with ``done``."""
    parts = []
    for line in response.iter_lines():
        if time.monotonic() > deadline:
            raise TimeoutError
        if not line:
            continue
        piece = _parse_object(line)
        if "error" in piece:
            raise JudgeError(f"the server reports: {piece['error']}")
        raw = "response" in piece  # of /api/generate
        parts.append(_text_in({"content": piece["response"]} if raw else piece.get("message")))
        if piece.get("done"):
            return "".join(parts), _sum_of(piece, "prompt_eval_count", "eval_count")
    raise JudgeError("the answer was cut")


def _read_choice(response: requests.Response, deadline: float) -> tuple[str, int]:
    content = bytearray()
    for chunk in response.iter_content(1 << 12):
        if time.monotonic() > deadline:
            raise TimeoutError
        content += chunk
    whole = _parse_object(bytes(content))
    choices, usage = whole.get("choices"), whole.get("usage")
    first = choices[0] if isinstance(choices, list) and choices else None
    text = _text_in(first.get("message") if isinstance(first, dict) else None)
    return text, _sum_of(usage if isinstance(usage, dict) else {}, "total_tokens")


def _sum_of(counts: dict, *names: str) -> int:
    """What the server says that it has counted; what is no number counts as 0."""
    return sum(counts[name] for name in names if isinstance(counts.get(name), int))


def _parse_object(content: bytes) -> dict:
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        start = content[:40].decode("utf-8", errors="replace")
        raise JudgeError(f"got something else than JSON objects: {start!r}")
    return parsed


def _text_in(message) -> str:
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise JudgeError("the answer has no message with content")
    return text


# --- Many questions


def ask_all(
    prompts: Sequence[str],
    ask: Callable[[str], str],
    path: str | Path | None = None,
    workers: int = 4,
    progress: bool = True,
    about: str = "",
) -> list[str | JudgeError]:
    """The answer to each prompt, or the error of it, ``workers`` questions at a time.

    ``ask`` is a function like ``query_model`` with its options bound (``functools.partial``). Each
    answer is appended to the file ``path`` as soon as it is there, one JSON object a line, and is
    not asked for again by a later call with the same prompts; errors are. A half line, left by a
    process that was killed, is removed. ``about`` is what the answers depend on besides, the model
    say: answers with another one are another file's.

    Raises ``JudgeUnavailableError`` (no server, budget spent) and whatever else ``ask`` raises, and
    ends at once on Ctrl-C; what had been answered until then is in the file. Raises ``ValueError``
    for a file with answers to other prompts.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    asked = [about + prompt for prompt in prompts]
    answers: dict[int, str | JudgeError] = dict(read_answers(asked, path)) if path else {}
    todo: queue.Queue[int] = queue.Queue()
    for number in range(len(prompts)):
        if number not in answers:
            todo.put(number)
    missing, done, stop = todo.qsize(), queue.Queue(), threading.Event()
    threads = [
        threading.Thread(target=_work, args=(prompts, ask, todo, done, stop), daemon=True)
        for _ in range(min(workers, missing))
    ]
    for thread in threads:
        thread.start()
    bar = tqdm(total=len(prompts), initial=len(answers), desc="answers", disable=not progress)
    with bar, _appending(path) as append:
        try:
            for _ in range(missing):
                number, answer = _take(done)
                _keep(number, answer, asked, answers, append)
                bar.update()
        except BudgetSpentError:  # what is under way has been paid for
            stop.set()
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.1)
                threads.append(threads.pop(0))
            raise
        finally:
            stop.set()
            while not done.empty():  # answered meanwhile
                number, answer = done.get()
                if isinstance(answer, str):
                    _keep(number, answer, asked, answers, append)
    return [answers[number] for number in range(len(prompts))]


def _work(prompts, ask, todo: queue.Queue, done: queue.Queue, stop: threading.Event) -> None:
    """What each thread does: ask until there is no question left, or the run ends."""
    while not stop.is_set():
        try:
            number = todo.get_nowait()
        except queue.Empty:
            return
        try:
            done.put((number, ask(prompts[number])))
        except BaseException as error:
            done.put((number, error))


def _take(done: queue.Queue) -> tuple[int, str | BaseException]:
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.2)  # on Windows, Ctrl-C waits for the end of a get


def _keep(number: int, answer, prompts, answers: dict, append: Callable[[dict], None]) -> None:
    if isinstance(answer, JudgeUnavailableError) or not isinstance(answer, str | JudgeError):
        raise answer
    answers[number] = answer
    if isinstance(answer, str):
        append({"number": number, "prompt_sha256": _hash(prompts[number]), "answer": answer})


@contextlib.contextmanager
def _appending(path: str | Path | None):
    """A function that adds a line to the file, and returns when it is on the disk."""
    if path is None:
        yield lambda line: None
        return
    with Path(path).open("ab") as file:

        def append(line: dict) -> None:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

        yield append


def read_answers(prompts: Sequence[str], path: str | Path) -> dict[int, str]:
    """The answers in a file of ``ask_all``, by the prompts' numbers; a half last line is removed.

    Raises ``ValueError`` if a line is none of ``ask_all``, or answers another prompt.
    """
    path = Path(path)
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    answers = {}
    for place, line in enumerate(whole.splitlines(), 1):
        try:
            found = json.loads(line)
            number, known, answer = (found[n] for n in ("number", "prompt_sha256", "answer"))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {place} is no answer that was kept: {line[:60]!r}"
            ) from None
        if not (isinstance(number, int) and 0 <= number < len(prompts)) or known != _hash(
            prompts[number]
        ):
            raise ValueError(
                f"{path} holds answers to other prompts (line {place}): remove it, or choose "
                "another file"
            )
        answers[number] = answer
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return answers


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
