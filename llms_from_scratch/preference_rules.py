"""Rules with which a program can tell whether an answer has the wanted form (bonus of chapter 7).

The bundled preference pairs are made so that each chosen answer passes the rule that its key "rule"
names, and each rejected one does not.
"""

import re
from collections.abc import Callable

SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
POINT = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)


def has_one_sentence(answer: str) -> bool:
    """One line that ends where its only sentence ends.

    >>> has_one_sentence("It is 3.5 m long."), has_one_sentence("Yes. No."), has_one_sentence("Yes")
    (True, False, False)
    """
    ends = list(SENTENCE_END.finditer(answer.strip()))
    return len(ends) == 1 and ends[0].end() == len(answer.strip()) and "\n" not in answer.strip()


def is_upper_case(answer: str) -> bool:
    """No letter is small, and there is one.

    >>> is_upper_case("YES, 3!"), is_upper_case("YES, no"), is_upper_case("3")
    (True, False, False)
    """
    return answer.isupper()


def has_five_words(answer: str) -> bool:
    """From one to five words.

    >>> has_five_words("Two words."), has_five_words("- one two three four five six")
    (True, False)
    """
    return 1 <= len(re.findall(r"[\w'’-]*\w[\w'’-]*", answer)) <= 5


def has_two_points(answer: str) -> bool:
    """Two lines of a list, with nothing else.

    >>> has_two_points("- a\\n- b"), has_two_points("1. a\\n2. b\\n3. c"), has_two_points("a b")
    (True, False, False)
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == 2 and all(POINT.match(line) for line in lines)


def ends_with_question(answer: str) -> bool:
    """The last sign is a question mark.

    >>> ends_with_question("It is. Is it?"), ends_with_question("Is it? It is.")
    (True, False)
    """
    return answer.rstrip().endswith("?")


def begins_with_thanks(answer: str) -> bool:
    """Its first two words are "Thank you".

    >>> begins_with_thanks('"Thank you, it is.'), begins_with_thanks("No, thank you.")
    (True, False)
    """
    return re.match(r"\W*thank you\b", answer, re.IGNORECASE) is not None


RULES: dict[str, Callable[[str], bool]] = {
    "one_sentence": has_one_sentence,
    "upper_case": is_upper_case,
    "five_words": has_five_words,
    "two_points": has_two_points,
    "ends_with_question": ends_with_question,
    "begins_with_thanks": begins_with_thanks,
}


def follows_rule(answer: str, rule: str) -> bool:
    """Whether an answer passes the rule of that name; ``ValueError`` for a name that is none."""
    if rule not in RULES:
        raise ValueError(f"the rule must be one of {tuple(RULES)}, got {rule!r}")
    return RULES[rule](answer)


def rule_counts(entries: list[dict], answers: list[str]) -> dict[str, list[int]]:
    """For each rule, how many answers pass it and how many there are; also for "all" together."""
    counts: dict[str, list[int]] = {"all": [0, 0]}
    for entry, answer in zip(entries, answers, strict=True):
        passed = follows_rule(answer, entry["rule"])
        for name in ("all", entry["rule"]):
            count = counts.setdefault(name, [0, 0])
            counts[name] = [count[0] + passed, count[1] + 1]
    return counts
