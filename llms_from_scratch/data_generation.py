"""Bonus of chapter 7: instruction data that a language model makes.

Pairs with a preference, entries from nothing but a template's mark, and sentences in passive voice.
What the model has written is checked here by rules, since small models often do something else.
"""

import re
from collections.abc import Callable

from llms_from_scratch.weights.chat_formats import TurnFormat

# --- Pairs with a preference

WISHES = ("polite", "impolite")


def rewrite_prompt(entry: dict, wish: str) -> str:
    """The question to a model: say the entry's output in a polite, or an impolite, way."""
    if wish not in WISHES:
        raise ValueError(f"the wish must be one of {WISHES}, got {wish!r}")
    task = " ".join(part for part in (entry["instruction"], entry["input"]) if part)
    return (
        f"Someone was asked: `{task}`\n"
        f"The correct answer is: `{entry['output']}`\n"
        f"Rewrite this answer in a slightly more {wish} way. Keep its meaning and change little. "
        "Write the new answer and nothing else."
    )


def preference_pair(entry: dict, wish: str, rewritten: str) -> dict:
    """The entry with "chosen" and "rejected": polite is better than plain, and plain than impolite.

    >>> entry = {"instruction": "Greet.", "input": "", "output": "Hello."}
    >>> preference_pair(entry, "impolite", "What?")["chosen"]
    'Hello.'
    """
    answers = (rewritten, entry["output"])
    chosen, rejected = answers if wish == "polite" else answers[::-1]
    return entry | {"chosen": chosen, "rejected": rejected}


def what_is_wrong(pair: dict, most: float = 3.0) -> str | None:
    """Why a pair teaches nothing, or ``None``: it is empty, the same twice, or much too long.

    ``most`` is how many times as long as the output the longer answer may be, in words, plus ten.
    """
    chosen, rejected = pair["chosen"].strip(), pair["rejected"].strip()
    if not (chosen and rejected):
        return "an answer is empty"
    if chosen.casefold() == rejected.casefold():
        return "both answers are the same"
    longest = max(len(text.split()) for text in (chosen, rejected))
    if longest > most * len(pair["output"].split()) + 10:
        return f"an answer has {longest} words"
    return None


# --- Entries from a template alone


def pre_query(chat: TurnFormat) -> str:
    """What stands before a user's message in this chat format, without any system message.

    A model that was trained on conversations goes on with a message that a user might write.
    Source: Xu et al., "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with
    Nothing" (2024).
    """
    mark = "PLACE-OF-THE-MESSAGE"
    ids = [chat.mark(special) for special in chat.begin]
    ids += chat.turn(chat.roles.get("user", "user"), mark)
    before, found, _ = chat.tokenizer.decode(ids).partition(mark)
    if not found:
        raise ValueError("this chat format does not show a user's message as it is")
    return before


def extract_instruction(text: str) -> str | None:
    """The first line with something in it, or ``None`` if there is no such line.

    >>> extract_instruction("\\n  What is a fox?\\nIt is"), extract_instruction(" \\n")
    ('What is a fox?', None)
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def make_entry(
    number: int,
    write: Callable[[str, int], str],
    answer: Callable[[str], str],
    prefix: str,
) -> dict | None:
    """An entry that a model has made by itself; ``None`` if a part of it came out empty.

    ``write(prefix, seed)`` goes on with a text, ``answer(instruction)`` answers a message. The
    number of the entry is its seed.
    """
    instruction = extract_instruction(write(prefix, number))
    output = answer(instruction).strip() if instruction else ""
    return {"instruction": instruction, "input": "", "output": output} if output else None


# --- Passive voice

BE = r"(?:am|is|are|was|were|be|been|being|isn't|aren't|wasn't|weren't)"
IRREGULAR = (
    "begun|bitten|born|bought|bound|broken|brought|built|burnt|caught|chosen|cut|done|drawn|driven|"
    "drunk|eaten|fed|felt|fought|found|forgotten|frozen|given|grown|heard|held|hidden|hit|hurt|kept|"
    "known|laid|led|learnt|left|lent|lit|lost|made|meant|met|paid|put|read|ridden|said|sat|seen|"
    "sent|set|shaken|shot|shown|shut|sold|spent|spoken|spread|stolen|struck|sung|sunk|swept|swum|"
    "taken|taught|thought|thrown|told|torn|understood|woken|won|worn|written|written|wound"
)
PASSIVE = re.compile(
    rf"\b{BE}\b(?:\s+(?:not|\w+ly|often|always|never|also|being|been))*"
    rf"\s+(?:{IRREGULAR}|\w{{2,}}ed)\b",
    re.IGNORECASE,
)


def is_passive(sentence: str) -> bool:
    """Whether a form of "to be" is followed by a past participle, as far as a rule can tell.

    "He is tired" passes too: the rule knows no meaning, so its share is an upper bound.

    >>> is_passive("The meal is cooked every day."), is_passive("The chef cooks the meal.")
    (True, False)
    >>> is_passive("It has not been written."), is_passive("It was a red house.")
    (True, False)
    """
    return PASSIVE.search(sentence) is not None


def passive_prompt(sentence: str) -> str:
    """The question to a model: the same in passive voice."""
    return (
        "Convert the sentence below to passive voice. Write the new sentence and nothing else.\n\n"
        f"{sentence}"
    )


def is_new_passive(sentence: str, rewritten: str) -> bool:
    """Whether a text is one sentence in passive voice that does not hold the old one.

    At least half of its words of four letters or more begin like a word of the old sentence.
    """
    words = [word for word in re.findall(r"\w+", rewritten.casefold()) if len(word) > 3]
    starts = {word[:4] for word in re.findall(r"\w+", sentence.casefold()) if len(word) > 3}
    known = [word for word in words if word[:4] in starts]
    is_other = sentence.strip(" .!?").casefold() not in rewritten.casefold()
    is_one = len(re.findall(r"[.!?](?=\s|$)", rewritten)) <= 1 and "\n" not in rewritten.strip()
    return is_passive(rewritten) and is_other and is_one and 2 * len(known) >= len(words)
