"""Chapter 7: how good is an answer? Two judges, a program with rules and a language model.

The rules work everywhere, but only for questions with a definite answer. The language model judges
any answer; it runs on a server that speaks Ollama's protocol or OpenAI's.
"""

import json
import re
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable

import requests

OLLAMA_URL = "http://localhost:11434/api/chat"
OPENAI_URL = "http://localhost:8000/v1/chat/completions"
CONNECT_SECONDS = 10.0  # until a server must accept the connection
REPEATABLE = {"seed": 123, "temperature": 0}  # the same question gets the same answer
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that a second try may mend

# --- A program with rules

OPEN_ENDED = re.compile(
    r"\b(?:compose|create|describe|explain|generate|give|list|provide|suggest|write|example"
    r"|similar|synonyms?|rhymes?|sentence using|any)\b",
    re.IGNORECASE,
)
REWRITING = re.compile(
    r"\b(?:change|combine|correct|edit|improve|paraphrase|rephrase|replace|reword|re-word|rewrite"
    r"|summarize|transform|turn)\b",
    re.IGNORECASE,
)
NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)"  # not the 2 of "CO2"
STOP_WORDS = {"a", "an", "the", "is", "are", "was", "of", "to", "in", "for", "and", "or", "its"}


def normalize(text: str) -> str:
    """A text without what makes no difference to an answer.

    Upper case becomes lower case, typographic quotes plain ones, white space one space, "3,000"
    becomes "3000", and "é" is the same in one character or in two. Punctuation at both ends is
    removed, unless there is nothing else.

    >>> normalize("  'Paris', in\\nFrance. "), normalize("3,000 m"), normalize("?")
    ("paris', in france", '3000 m', '?')
    """
    text = _simplify(text)
    return text.strip(" .,;:!?'\"`()[]*") or text


def _simplify(text: str) -> str:
    text = unicodedata.normalize("NFD", text).casefold()
    text = unicodedata.normalize("NFC", text).translate(str.maketrans("‘’“”−", "''\"\"-"))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return " ".join(text.split())


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether whole words of a text are the phrase; both are normalized.

    >>> contains_phrase("It is 'cold'.", "cold"), contains_phrase("A scolding", "cold")
    (True, False)
    >>> contains_phrase("3.5 km", "3"), contains_phrase("-5 degrees", "5")
    (False, False)
    """
    phrase = normalize(phrase)
    before = r"(?<!\d[.,])(?<!-)" if phrase[:1].isdigit() else ""
    after = r"(?![.,]\d)" if phrase[-1:].isdigit() else ""
    pattern = rf"(?<!\w){before}{re.escape(phrase)}(?!\w){after}"
    return re.search(pattern, _simplify(text)) is not None


def answer_check(entry: dict) -> dict | None:
    """How a program can judge an answer to this entry, or ``None`` if it cannot.

    The result is the entry's own ``"check"`` if it has one: ``{"match": "exact", "any_of": [...]}``
    or ``{"match": "contains", "any_of": [...]}``. Otherwise three cautious rules are tried, for
    instructions that do not ask for one of many good answers (an example, a synonym, a text):

    1. a reference output of at most three words must be given exactly;
    2. without an input, a reference "... is X" in which X, at most three words, is new and all
       that goes before is said in the instruction: the answer must contain X;
    3. without an input, a reference with exactly one number that the instruction lacks: the answer
       must contain that number.

    A right answer in other words can fail such a check, and a wrong one that happens to contain the
    text can pass it.
    """
    if entry.get("check"):
        return entry["check"]
    question, output = entry["instruction"], entry["output"]
    if OPEN_ENDED.search(question) or not normalize(output):
        return None
    if len(output.split()) <= 3:
        return {"match": "exact", "any_of": [output]}
    if entry["input"] or REWRITING.search(question) or len(output.split()) > 15:
        return None
    answer = _new_ending(question, output) or _new_number(question, output)
    return {"match": "contains", "any_of": [answer]} if answer else None


def _new_number(question: str, output: str) -> str | None:
    """The number that only the output has, if there is exactly one."""
    found = re.findall(NUMBER, _simplify(output))
    new = [number for number in found if not contains_phrase(question, number)]
    return new[0] if len(set(new)) == 1 else None


def _new_ending(question: str, output: str) -> str | None:
    """The X of an output "... is X" that says nothing else which the question does not say."""
    head, _, ending = _simplify(output).rpartition(" is ")
    asked = set(re.findall(r"\w+", _simplify(question))) | STOP_WORDS
    ending = normalize(ending)
    words = re.findall(r"\w+", ending)
    is_new = 1 <= len(words) <= 3 and not asked & set(words)
    return ending if head and is_new and set(re.findall(r"\w+", head)) <= asked else None


def is_correct(response: str, check: dict) -> bool:
    """Whether a response passes a check of ``answer_check``, after ``normalize``.

    >>> is_correct("paris", {"match": "exact", "any_of": ["Paris."]})
    True
    >>> is_correct("It is in Paris.", {"match": "contains", "any_of": ["Paris", "Lutetia"]})
    True
    """
    if check["match"] == "exact":
        return normalize(response) in {normalize(text) for text in check["any_of"]}
    if check["match"] == "contains":
        return any(contains_phrase(response, text) for text in check["any_of"])
    raise ValueError(f"the check's match must be 'exact' or 'contains', got {check['match']!r}")


def score_verifiable(entries: list[dict], responses: list[str]) -> dict[str, int]:
    """Count the entries, those among them that a program can judge, and the right answers."""
    checks = [answer_check(entry) for entry in entries]
    verdicts = [
        is_correct(response, check)
        for response, check in zip(responses, checks, strict=True)
        if check is not None
    ]
    return {"entries": len(entries), "verifiable": len(verdicts), "correct": sum(verdicts)}


def token_f1(response: str, reference: str) -> float:
    """How many words two texts share, from 0 to 1: the harmonic mean of precision and recall.

    It is the F measure of ROUGE-1. It knows neither order nor meaning, so it is a hint for texts
    that no rule can check. Sources: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries"
    (2004); Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016).

    >>> token_f1("The cat sat.", "the black cat")
    0.6666666666666666
    """
    given, wanted = (Counter(re.findall(r"\w+", _simplify(t))) for t in (response, reference))
    shared = (given & wanted).total()
    total = given.total() + wanted.total()
    return 2 * shared / total if total else 1.0


def rouge_l(response: str, reference: str) -> float:
    """The F measure of ROUGE-L, from 0 to 1: the longest sequence of words that two texts share.

    The words need not be neighbors, but their order counts. It needs the package rouge-score.
    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004).
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise ImportError("rouge_l needs rouge-score: pip install rouge-score") from None
    return rouge_scorer.RougeScorer(["rougeL"]).score(reference, response)["rougeL"].fmeasure


# --- A language model on a server


class JudgeError(RuntimeError):
    """The server gave no usable answer to one question; another one may go better."""


class JudgeUnavailableError(JudgeError):
    """There is no server, or it does not have the model: no question will be answered."""


def check_if_running(process_name: str) -> bool:
    """Whether some process of this machine has ``process_name`` in its name (section 7.8).

    It needs the package psutil, and sees no server on another machine or in a container.
    """
    try:
        import psutil
    except ImportError:
        raise ImportError("check_if_running needs psutil: pip install psutil") from None
    names = (process.info["name"] or "" for process in psutil.process_iter(["name"]))
    return any(process_name in name for name in names)


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    timeout: float = 300.0,
    retries: int = 2,
    pause: float = 1.0,
) -> str:
    """Ask a model of an Ollama server, and return its whole answer (section 7.8).

    ``timeout`` is for one answer, in seconds; the first takes longer, since the server loads the
    model. After an error that may pass, the question is asked up to ``retries`` times more, first
    after ``pause`` seconds, then after twice as many. Raises ``JudgeUnavailableError`` if there is
    no server or no such model (the message says what to do), and ``JudgeError`` otherwise.
    """
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "options": REPEATABLE | {"num_ctx": 2048},  # seed and temperature count only in here
    }
    no_server = (
        f"no Ollama server answers at {url}: start the Ollama app or run `ollama serve`, then "
        f"`ollama pull {model}`"
    )
    no_model = f"the server has no model {model!r}: run `ollama pull {model}`, or name another one"
    return _ask(url, request, {}, _read_stream, no_server, no_model, timeout, retries, pause)


def query_openai(
    prompt: str,
    model: str,
    url: str = OPENAI_URL,
    api_key: str | None = None,
    timeout: float = 300.0,
    retries: int = 2,
    pause: float = 1.0,
) -> str:
    """Ask a model of a server that speaks OpenAI's protocol; otherwise like ``query_model``."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        **REPEATABLE,
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    no_server = f"no server answers at {url}: start one, or give the right URL"
    no_model = f"the server has no model {model!r}, or it speaks another protocol at {url}"
    return _ask(url, request, headers, _read_choice, no_server, no_model, timeout, retries, pause)


def _ask(
    url: str,
    request: dict,
    headers: dict,
    read: Callable[[requests.Response, float], str],
    no_server: str,
    no_model: str,
    timeout: float,
    retries: int,
    pause: float,
) -> str:
    """Send one question, several times if need be; ``read`` takes the answer's text."""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            status, text = _within(timeout, lambda: _post(url, request, headers, read, timeout))
            if status == 200:
                return text
            if status == 404:
                raise JudgeUnavailableError(f"{no_model} (HTTP status 404)")
            if status in (401, 403):
                raise JudgeUnavailableError(f"{url} refuses the API key (HTTP status {status})")
            failure = f"HTTP status {status}: {text[:200]}"
            if status not in TEMPORARY:
                break
        except JudgeUnavailableError:
            raise
        except JudgeError as error:
            failure = str(error)
        except (requests.RequestException, TimeoutError) as error:
            if "NewConnectionError" in repr(error) or isinstance(error, requests.ConnectTimeout):
                raise JudgeUnavailableError(no_server) from None  # there was no connection at all
            if isinstance(error, ValueError) and not isinstance(error, requests.ConnectionError):
                raise JudgeUnavailableError(f"{url} is no usable URL: {error}") from None
            in_time = not isinstance(error, TimeoutError | requests.Timeout)
            in_time = in_time and "timed out" not in str(error)
            failure = "the answer was cut" if in_time else f"no whole answer in {timeout:g} seconds"
    raise JudgeError(f"{url}: {failure}")


def _post(
    url: str,
    request: dict,
    headers: dict,
    read: Callable[[requests.Response, float], str],
    timeout: float,
) -> tuple[int, str]:
    """The HTTP status, and the answer's text or what an error's page says."""
    deadline = time.monotonic() + timeout
    timeouts = (min(CONNECT_SECONDS, timeout), timeout)
    with requests.post(
        url, json=request, headers=headers, stream=True, timeout=timeouts
    ) as response:
        if response.status_code == 200:
            return 200, read(response, deadline)
        return response.status_code, response.text


def _within(seconds: float, work: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """What ``work`` returns or raises, or a ``TimeoutError`` after so many seconds.

    A socket's own limit begins anew with each byte, so a server that sends one now and then, even
    of its headers, can take any time. Hence the work is done in a thread, which is left behind.
    """
    results: list[tuple[int, str]] = []
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


def _read_stream(response: requests.Response, deadline: float) -> str:
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
        parts.append(_text_in(piece.get("message")))
        if piece.get("done"):
            return "".join(parts)
    raise JudgeError("the answer was cut")


def _read_choice(response: requests.Response, deadline: float) -> str:
    content = bytearray()
    for chunk in response.iter_content(1 << 12):
        if time.monotonic() > deadline:
            raise TimeoutError
        content += chunk
    choices = _parse_object(bytes(content)).get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return _text_in(first.get("message") if isinstance(first, dict) else None)


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


OF_100 = (
    r"(?:/|\b(?:out )?of\b)(?: an?)?(?: possible| maximum of| total of)? ?100\b(?!\.\d)"
    r"|\b[01] ?(?:[-–]|to) ?100\b|\b100[- ]point\b|%"
)
SMALL_NUMBER = r"(?:\d|(?:two|three|four|five|six|seven|eight|nine|ten|twenty)\b)"
OTHER_SCALE = "|".join(  # of what is left without OF_100
    (
        rf"{NUMBER}[ (*]*(?:(?:stars?|points?|marks?)[ (*]*)?(?:/|\bout of|\bof|\bfrom)[ *]*"
        rf"(?:an? )?(?:possible |maximum of |total of )?{SMALL_NUMBER}",  # 8 (out of 10)
        rf"{NUMBER} ?[(\[] ?(?:range:? ?)?[01] ?(?:[-–]|to) ?\d",  # 8 (1-10)
        rf"\bscale(?: is|:| of| from)?(?: an?)? ?{SMALL_NUMBER}",  # 8 on a scale of 10
        rf"{SMALL_NUMBER}[- ]point\b.{{0,9}}\bscale\b|\b[01] ?(?:[-–]|to) ?\d+ scale\b",
        rf"{NUMBER}[ -]?(?:stars?\b|★|⭐)|★|⭐",  # 4 stars
    )
)


def parse_score(answer: str) -> int | None:
    """The score from 0 to 100 that a judge's answer states, or ``None`` if that is not clear.

    A number after "score" or "rating" counts most; otherwise the answer must have one number only.
    "85/100", "85 out of 100" and "85%" are 85, decimals are rounded. Numbers in words, numbers
    outside of 0 to 100, several different numbers, other scales and web pages give ``None``. What a
    model thinks before it answers, up to ``</think>``, does not count; thoughts without an end
    are no answer.

    >>> [parse_score(a) for a in ("85", "Score: 85/100, it has 2 errors.", "8/10", "eighty", "")]
    [85, 85, None, None, None]
    """
    text = _simplify(answer).rpartition("</think>")[2].lstrip()
    if text.startswith("<"):  # a web page, or "<think>" that was cut
        return None
    text = re.sub(OF_100, " ", text)
    if re.search(OTHER_SCALE, text):
        return None
    stated = re.findall(rf"\b(?:score|rating)\b(?: is| of)?[\s:=*\"']*({NUMBER})", text)
    numbers = set(stated or re.findall(NUMBER, text))
    if len(numbers) != 1:
        return None
    score = float(numbers.pop())
    return round(score) if 0 <= score <= 100 else None
