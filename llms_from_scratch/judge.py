"""Chapter 7: how good is an answer? Two judges, a program with rules and a language model.

The rules work everywhere, but only for questions with a definite answer. The language model judges
any answer; ``llm_client`` asks it on a server that speaks Ollama's protocol or OpenAI's.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llms_from_scratch.llm_client import (
    OLLAMA_URL,
    OPENAI_URL,
    JudgeError,
    JudgeUnavailableError,
    ask_all,
    query_model,
    query_openai,
)

__all__ = [
    "OLLAMA_URL",
    "OPENAI_URL",
    "JudgeError",
    "JudgeUnavailableError",
    "Comparison",
    "agreement",
    "answer_check",
    "ask_all",
    "check_if_running",
    "compare_responses",
    "contains_phrase",
    "is_correct",
    "normalize",
    "pairwise_prompt",
    "parse_preference",
    "parse_score",
    "query_model",
    "query_openai",
    "rouge_l",
    "score_by_kind",
    "score_verifiable",
    "summarize_comparisons",
    "token_f1",
]

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


def score_by_kind(entries: list[dict], responses: list[str]) -> dict[str, dict[str, int]]:
    """``score_verifiable`` for each "kind" and each "sort" that entries name, in their order."""
    answered = list(zip(entries, responses, strict=True))
    names = dict.fromkeys((key, e[key]) for key in ("sort", "kind") for e in entries if key in e)
    scores = {}
    for key, name in names:
        chosen = [pair for pair in answered if pair[0].get(key) == name]
        scores[f"{key} {name}"] = score_verifiable(*map(list, zip(*chosen, strict=True)))
    return scores


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


# --- A language model, through ``llm_client``


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


# --- Which of two responses is better


def pairwise_prompt(entry: dict, first: str, second: str) -> str:
    """The question to a judge: which response to this entry is better, A, B, or neither?"""
    task = "\n".join(part for part in (entry["instruction"], entry["input"]) if part)
    return (
        f"Two models were given this task: `{task}`\n"
        f"A correct response is: `{entry['output']}`\n"
        f"Response A is: `{first}`\n"
        f"Response B is: `{second}`\n"
        "Which response is better? Answer with one word and nothing else: A, B, or tie."
    )


def parse_preference(answer: str) -> str | None:
    """What a judge prefers, "A", "B" or "tie", or ``None`` if that is not clear.

    Thoughts up to ``</think>`` do not count, as in ``parse_score``.

    >>> [parse_preference(answer) for answer in ("B", "**Response A** is better.", "It's a tie.")]
    ['B', 'A', 'tie']
    >>> [parse_preference(answer) for answer in ("A or B?", "A good question.", "")]
    [None, None, None]
    """
    text = answer.rpartition("</think>")[2].strip()
    if text.startswith("<"):
        return None
    plain = text.strip(" *_`'\".()[]\n")
    if plain.upper() in ("A", "B"):
        return plain.upper()
    named = re.findall(r"\b(?:response|answer|option)\s*[:=]?\W{0,3}([AB])\b", text, re.IGNORECASE)
    named += re.findall(r"\b([AB]) (?:is|was) (?:the )?(?:better|best|preferred)\b", text)
    named += ["tie"] * bool(re.search(r"\b(?:tie|equal|equally)\b", text, re.IGNORECASE))
    found = {name if name == "tie" else name.upper() for name in named}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """Two answers of a judge about one entry, the second with both responses in swapped places.

    ``outcome`` is "first" or "second" (that response is better, in either place), "tie",
    "inconsistent" (the judge prefers a place, or calls it a tie in one order only), "unparsable" or
    "failed".
    """

    outcome: str
    answers: tuple[str, str]


def compare_responses(
    data: Sequence[dict],
    first_key: str,
    second_key: str,
    ask: Callable[[str], str],
    path: str | Path | None = None,
    workers: int = 4,
    about: str = "",
    progress: bool = True,
) -> list[Comparison]:
    """Ask a judge twice for each entry, the responses in either order; see ``Comparison``.

    Judges tend to prefer the response that they read first, or last. With swapped places that
    tendency shows, and cannot decide. The other arguments are those of ``ask_all``, which also
    says what is raised. Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and
    Chatbot Arena" (2023).
    """
    prompts = []
    for i, entry in enumerate(data):
        for key in (first_key, second_key):
            if not isinstance(entry.get(key), str):
                raise ValueError(f"entry {i} has no text under the key {key!r}")
        first, second = entry[first_key], entry[second_key]
        prompts += [pairwise_prompt(entry, first, second), pairwise_prompt(entry, second, first)]
    answers = ask_all(prompts, ask, path, workers, progress, about)
    return [_compare(*answers[i : i + 2]) for i in range(0, len(answers), 2)]


def _compare(in_order: str | JudgeError, swapped: str | JudgeError) -> Comparison:
    texts = (str(in_order), str(swapped))
    if isinstance(in_order, JudgeError) or isinstance(swapped, JudgeError):
        return Comparison("failed", texts)
    one, other = parse_preference(in_order), parse_preference(swapped)
    if one is None or other is None:
        return Comparison("unparsable", texts)
    outcomes = {("A", "B"): "first", ("B", "A"): "second", ("tie", "tie"): "tie"}
    return Comparison(outcomes.get((one, other), "inconsistent"), texts)


def summarize_comparisons(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """How many comparisons there are, and how many with each outcome.

    "prefers_a" and "prefers_b" count the answers, two for an entry, that chose the place A, or B: a
    judge without a preference for a place has about as many of one as of the other.
    """
    names = ("first", "second", "tie", "inconsistent", "unparsable", "failed")
    counts = {name: sum(c.outcome == name for c in comparisons) for name in names}
    judged = [c for c in comparisons if c.outcome != "failed"]
    places = Counter(parse_preference(answer) for c in judged for answer in c.answers)
    return {
        "entries": len(comparisons),
        **counts,
        "prefers_a": places["A"],
        "prefers_b": places["B"],
    }


def agreement(scores: Sequence[float], is_right: Sequence[bool]) -> float:
    """How well scores tell right answers from wrong ones: 1 always, 0.5 like a coin, 0 never.

    It is the share of pairs of a right and a wrong answer in which the right one has the higher
    score; equal scores count one half. (Known as the area under the ROC curve.) NaN if all answers
    are right, or all wrong.

    >>> agreement([90, 40, 40, 10], [True, True, False, False])
    0.875
    """
    rows = list(zip(scores, is_right, strict=True))
    right, wrong = ([score for score, verdict in rows if verdict is kind] for kind in (True, False))
    pairs = len(right) * len(wrong)
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / pairs if pairs else float("nan")
