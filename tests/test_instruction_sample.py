"""The bundled instructions: what the generator makes, and that a program can judge answers."""

import json
import re
import unicodedata
from collections import Counter

import make_instruction_sample
import pytest

from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data import SAMPLES
from llms_from_scratch.judge import is_correct

COMMITTED = SAMPLES / "instruction-data-synthetic.json"


@pytest.fixture(scope="module")
def entries():
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


def passes(answer, check):
    """What the module's documentation says of checks, in the fewest words."""
    answer, texts = plain(answer), [plain(text) for text in check["any_of"]]
    if check["match"] == "exact":
        return answer in texts
    return any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer) for text in texts)


def plain(text):
    return text.strip().removesuffix(".").lower()


def parts(entries):
    """The book's split: 85 % for training, 10 % for the test, the rest for validation."""
    train, test = int(len(entries) * 0.85), int(len(entries) * 0.1)
    return entries[:train], entries[train : train + test], entries[train + test :]


def test_generator_gives_the_committed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(make_instruction_sample, "TARGET", tmp_path / "made.json")
    make_instruction_sample.main()
    assert (tmp_path / "made.json").read_bytes() == COMMITTED.read_bytes()


def test_there_are_as_many_entries_as_in_the_book_and_the_file_is_small(entries):
    assert len(entries) == 1100
    assert [len(part) for part in parts(entries)] == [935, 110, 55]
    assert COMMITTED.stat().st_size < 400_000


def test_entries_have_the_keys_and_types_of_the_format(entries):
    assert load_entries(COMMITTED) == entries
    for entry in entries:
        assert list(entry)[:3] == ["instruction", "input", "output"]
        assert set(entry) <= {"instruction", "input", "output", "check"}
        assert all(isinstance(entry[key], str) for key in ("instruction", "input", "output"))
        assert entry["instruction"] and entry["output"]
        if "check" in entry:
            assert set(entry["check"]) == {"match", "any_of"}
            assert entry["check"]["match"] in ("exact", "contains")
            texts = entry["check"]["any_of"]
            assert texts and all(isinstance(text, str) and text.strip() for text in texts)
            assert len({text.lower() for text in texts}) == len(texts)


def test_nothing_is_asked_twice(entries):
    questions = [(entry["instruction"].lower(), entry["input"].lower()) for entry in entries]
    assert len(set(questions)) == len(questions)


def test_two_hundred_entries_are_written_by_hand(entries):
    written = [
        entry
        for text in make_instruction_sample.HAND_WRITTEN
        for entry in make_instruction_sample.read_hand_written(text)
    ]
    assert len(written) >= 200
    assert all(entry in entries for entry in written)


def test_reference_answers_pass_their_checks_and_echoes_do_not(entries):
    checked = [entry for entry in entries if "check" in entry]
    assert len(checked) >= 0.4 * len(entries)
    for entry in checked:
        question = f"{entry['instruction']} {entry['input']}"
        assert passes(entry["output"], entry["check"]), entry
        assert is_correct(entry["output"], entry["check"]), entry
        for echo in (entry["instruction"], entry["input"], question):
            assert not passes(echo, entry["check"]), entry
            assert not is_correct(echo, entry["check"]), entry


def test_an_empty_or_an_unrelated_answer_passes_no_check(entries):
    for entry in entries:
        if "check" in entry:
            assert not passes("", entry["check"])
            assert not passes("I am sorry, but this is beyond me.", entry["check"])


def test_each_part_of_the_split_can_be_checked_and_is_mixed(entries):
    for part in parts(entries):
        checked = [entry for entry in part if "check" in entry]
        assert len(checked) >= 0.4 * len(part)
        assert {entry["check"]["match"] for entry in checked} == {"exact", "contains"}
        assert len({entry["instruction"] for entry in part}) >= 0.5 * len(part) ** 0.9
        assert {bool(entry["input"]) for entry in part} == {True, False}


def test_no_answer_is_so_frequent_that_saying_it_always_would_score(entries):
    test = [entry for entry in parts(entries)[1] if "check" in entry]
    answers = Counter(entry["output"] for entry in entries)
    for answer, _ in answers.most_common(20):
        assert sum(passes(answer, entry["check"]) for entry in test) < 0.06 * len(test)


def test_texts_are_clean(entries):
    for entry in entries:
        for text in (entry["instruction"], entry["input"], entry["output"]):
            assert text == unicodedata.normalize("NFC", text).strip()
            assert not re.search(r"[\ufffd\x00-\x09\x0b-\x1f]|Ã|Â|â€|  | \n|<br>|[{}|~_]", text)
            assert all(char.isascii() or unicodedata.category(char) == "Ll" for char in text)


def test_numbers_are_written_as_english_words():
    words = {0: "zero", 12: "twelve", 40: "forty", 99: "ninety-nine", 120: "one hundred twenty"}
    words |= {700: "seven hundred", 1500: "one thousand five hundred", 12000: "twelve thousand"}
    assert {number: make_instruction_sample.in_words(number) for number in words} == words


@pytest.mark.parametrize(
    ("number", "numeral"),
    [(4, "IV"), (9, "IX"), (14, "XIV"), (40, "XL"), (49, "XLIX"), (58, "LVIII")],
)
def test_roman_numerals(number, numeral):
    assert make_instruction_sample.roman(number) == numeral
