"""Make the small tasks that a model of 22 M parameters can learn in minutes on a CPU.

    python tools/make_word_task_sample.py   # rewrites word-tasks-synthetic.json among the samples

Each answer is one of a few words, and the kinds are of two sorts ("kind", "sort"):

* "form": what is asked shows in the form of the text, an ending or a small word such as "not".
* "meaning": one has to know the word. Nothing in "basket" says that it is a thing.

The last 15 % of the entries, which the book's split leaves for validation and test, ask about words
that no entry of their kind has before. Within a kind, all answers are about equally frequent: who
always says the same is as often right as chance.
"""

import json
import random
from collections.abc import Iterator

from llms_from_scratch.data import SAMPLES
from llms_from_scratch.data.files import atomic_write

TARGET = SAMPLES / "word-tasks-synthetic.json"
TRAINING_SHARE = 0.85  # of the groups of a kind; as in the book's split

# third person, plain form, past
VERBS = """
plays play played, reads read read, writes write wrote, drinks drink drank, opens open opened,
paints paint painted, cleans clean cleaned, buys buy bought, sells sell sold, drives drive drove,
finds find found, breaks break broke, makes make made, takes take took, carries carry carried,
brings bring brought, sees see saw, washes wash washed, builds build built, chooses choose chose,
sings sing sang, loves love loved, keeps keep kept, closes close closed, hears hear heard,
gives give gave, teaches teach taught, sends send sent, leaves leave left, wants want wanted,
knows know knew, holds hold held, follows follow followed, shows show showed, loses lose lost,
forgets forget forgot, likes like liked, needs need needed, draws draw drew, tells tell told
"""
OBJECTS = "it, the story, the letter, a song, the house, the money, the book, the truth".split(", ")
SUBJECTS = "she, he, Tom, Anna, my sister, the teacher, the old man, the farmer, her son".split(
    ", "
)

NOUNS = """
dog dogs, queen queens, road roads, room rooms, house houses, door doors, boy boys, girl girls,
tree trees, horse horses, book books, flower flowers, letter letters, stone stones, bird birds,
friend friends, cloud clouds, star stars, street streets, brother brothers, sister sisters,
farmer farmers, garden gardens, window windows, ship ships, town towns, king kings, river rivers,
hill hills, table tables, chair chairs, lamp lamps, soldier soldiers, lake lakes, apple apples,
church churches, lady ladies, story stories, child children, man men, woman women, cat cats,
bridge bridges, village villages, hand hands, field fields, wall walls, servant servants,
teacher teachers, cousin cousins
"""
STATES = "old, new, here, there, beautiful, ready, dark, quiet, far away, strange".split(", ")
COLORS = "red, blue, green, white, black, yellow".split(", ")
ASKING = {"place": "Where", "time": "When", "reason": "Why", "person": "Who"}

# kind: {answer: words of which nothing but their meaning tells the answer}
MEANINGS = {
    "part of speech": {
        "noun": """basket chimney valley shoulder daughter hunger widow bishop cottage throat
            harvest meadow kingdom pocket blanket lantern feather orchard harbour thunder""",
        "verb": """arrive believe become listen remember explain pretend destroy persuade begin
            discover obey deceive consider forgive prevent admire deserve escape imagine""",
        "adjective": """happy clever gentle empty heavy narrow sleepy brave foolish bitter holy
            lazy proud dirty modest hungry cruel lonely noble stupid""",
    },
    "class": {
        "person": """priest baker sailor lawyer shepherd tailor nurse physician stranger banker
            prisoner butcher poet thief judge porter gardener cook barber pupil""",
        "animal": """wolf sheep lion goat rabbit pig bear donkey tiger crow swan hen mule fox
            pigeon calf elephant serpent lamb deer""",
        "thing": """spoon hammer pencil mirror needle curtain wagon barrel ladder bucket rope
            violin pillow razor kettle saddle trunk shovel drum cup""",
    },
    "feeling": {
        "good": """joy love peace beauty health kindness honour virtue friendship happiness hope
            mercy pleasure delight wisdom courage comfort triumph victory charity""",
        "bad": """death pain murder hatred fear grief misery danger crime sorrow shame despair
            disease famine cruelty horror poverty treason torture envy""",
    },
}
PHRASINGS = {
    "time": (
        "When does it happen: past, present or future?",
        "Does the sentence speak of the past, the present or the future?",
    ),
    "sentence": (
        "Is it a statement, a question or a command?",
        "Statement, question or command: what is this?",
    ),
    "negation": (
        "Does the sentence deny something? Answer yes or no.",
        "Is the sentence negative? Answer yes or no.",
    ),
    "asked for": (
        "What does the question ask for: a place, a time, a reason or a person?",
        "Place, time, reason or person: what does one want to know?",
    ),
    "color": ("Which color is named?", "Find the color in the sentence."),
    "number": (
        "Does the word name one thing or many?",
        "One or many: how many does the word name?",
    ),
    "verb form": (
        "Which word completes the sentence: is or are?",
        "Complete the sentence with is or are.",
    ),
    "part of speech": (
        "Is the word a noun, a verb or an adjective?",
        "Name the part of speech: noun, verb or adjective.",
    ),
    "class": (
        "Is it a person, an animal or a thing?",
        "Person, animal or thing: what does the word name?",
    ),
    "feeling": ("Is this good or bad?", "Good or bad: what is meant by this?"),
}


def main() -> None:
    entries = make_entries()
    with atomic_write(TARGET) as temporary:
        text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    print(f"{len(entries)} entries in {TARGET}")


def make_entries() -> list[dict]:
    """Entries in the book's format; those about words that are held out come last."""
    rng = random.Random(123)
    seen, held_out = [], []
    for kind, groups in groups_of_kinds(rng).items():
        rng.shuffle(groups)
        cut = round(TRAINING_SHARE * len(groups))
        for part, chosen in ((seen, groups[:cut]), (held_out, groups[cut:])):
            part += [make_entry(kind, *pair, rng) for group in chosen for pair in group]
    rng.shuffle(seen)
    rng.shuffle(held_out)
    # A few are left out so that the book's split, by position, falls exactly between the two
    while int(TRAINING_SHARE * (len(seen) + len(held_out))) != len(seen):
        (seen if len(seen) > TRAINING_SHARE * (len(seen) + len(held_out)) else held_out).pop()
    return seen + held_out


def make_entry(kind: str, text: str, answer: str, rng: random.Random) -> dict:
    return {
        "instruction": rng.choice(PHRASINGS[kind]),
        "input": text[0].upper() + text[1:] if text.endswith((".", "?")) else text,
        "output": answer,
        "kind": kind,
        "sort": "meaning" if kind in MEANINGS else "form",
        "check": {"match": "exact", "any_of": [answer]},
    }


def groups_of_kinds(rng: random.Random) -> dict[str, list[list[tuple[str, str]]]]:
    """For each kind, groups of (text, answer); what is in one group has its word in common."""
    verbs, nouns = (
        [entry.split() for entry in " ".join(text.split()).split(", ")] for text in (VERBS, NOUNS)
    )
    kinds = {name: [] for name in PHRASINGS}
    for verb in verbs:
        for kind, group in about_verb(*verb, rng.choice(SUBJECTS), rng.choice(OBJECTS), rng):
            kinds[kind].append(group)
    for noun in nouns:
        for kind, group in about_noun(*noun, rng.choice(STATES), rng):
            kinds[kind].append(group)
    for kind, answers in MEANINGS.items():
        columns = [[(word, answer) for word in text.split()] for answer, text in answers.items()]
        kinds[kind] = [list(group) for group in zip(*columns, strict=True)]
    return kinds


def about_verb(third, plain, past, who, what, rng) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield (
        "time",
        [
            (f"{who} {past} {what}.", "past"),
            (f"{who} {third} {what}.", "present"),
            (f"{who} will {plain} {what}.", "future"),
        ],
    )
    yield (
        "sentence",
        [
            (f"{who} {third} {what}.", "statement"),
            (f"does {who} {plain} {what}?", "question"),
            (f"{plain} {what}.", "command"),
        ],
    )
    denial = rng.choice((f"does not {plain}", f"did not {plain}", f"will not {plain}"))
    yield "negation", [(f"{who} {third} {what}.", "no"), (f"{who} {denial} {what}.", "yes")]
    asked = rng.sample(list(ASKING), 2)
    yield (
        "asked for",
        [
            (
                f"who {third} {what}?"
                if answer == "person"
                else f"{ASKING[answer]} does {who} {plain} {what}?",
                answer,
            )
            for answer in asked
        ],
    )


def about_noun(one, many, state, rng) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "number", [(one, "one"), (many, "many")]
    yield "verb form", [(f"the {one} __ {state}.", "is"), (f"the {many} __ {state}.", "are")]
    yield (
        "color",
        [(f"there is a {color} {one}.", color) for color in rng.sample(COLORS, 2)],
    )


if __name__ == "__main__":
    main()
