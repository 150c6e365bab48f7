"""The small tasks for the bundled model: what the file holds, and that the model learns them."""

import json
import subprocess
import sys
from collections import Counter, defaultdict

import make_word_task_sample
import pytest
from repository import ROOT

from llms_from_scratch.ch07 import load_entries, split_data
from llms_from_scratch.data import SAMPLES
from llms_from_scratch.judge import is_correct, score_by_kind

COMMITTED = SAMPLES / "word-tasks-synthetic.json"


@pytest.fixture(scope="module")
def entries():
    return load_entries(COMMITTED)


def test_generator_gives_the_committed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(make_word_task_sample, "TARGET", tmp_path / "made.json")
    make_word_task_sample.main()
    assert (tmp_path / "made.json").read_bytes() == COMMITTED.read_bytes()


def test_nothing_is_asked_twice_within_a_kind(entries):
    asked = Counter((entry["kind"], entry["input"]) for entry in entries)
    assert asked.most_common(1)[0][1] == 1


def test_a_held_out_word_of_a_kind_is_in_none_of_its_training_entries(entries):
    train, validation, test = split_data(entries)
    tables = " ".join((make_word_task_sample.NOUNS + "," + make_word_task_sample.VERBS).split())
    forms = [entry.split() for entry in tables.split(",")]
    group = {word: words[0] for words in forms for word in words}

    def words(entry) -> set[str]:
        found = entry["input"].lower().strip(".?").split()
        return {group[w] for w in found if w in group} if entry["sort"] == "form" else set(found)

    # Subjects and objects come again; the word that is asked about is the rarest of the sentence
    seen = defaultdict(set)
    for entry in train:
        seen[entry["kind"]] |= words(entry)
    repeated = ["house", "story", "letter", "book", "song", "sister", "teacher", "man", "farmer"]
    for entry in validation + test:
        fresh = words(entry) - {group.get(word, word) for word in repeated}
        assert not fresh & seen[entry["kind"]], entry


def test_always_the_same_answer_is_right_no_more_often_than_chance(entries):
    answers = defaultdict(Counter)
    for entry in entries:
        answers[entry["kind"]][entry["output"]] += 1
    for kind, counts in answers.items():
        share = counts.most_common(1)[0][1] / counts.total()
        assert share <= 1.4 / len(counts), (kind, counts)


def test_instructions_name_the_answers_and_echoes_are_wrong(entries):
    for entry in entries:
        question = f"{entry['instruction']} {entry['input']}".lower()
        assert entry["output"] in question
        assert is_correct(entry["output"], entry["check"])
        assert not is_correct(entry["input"], entry["check"])


def test_scores_by_kind_add_up_to_the_whole(entries):
    chosen = entries[:60]
    responses = [e["output"] if i % 3 else "no idea" for i, e in enumerate(chosen)]
    scores = score_by_kind(chosen, responses)
    for key in ("kind", "sort"):
        parts = [score for name, score in scores.items() if name.startswith(key)]
        assert sum(score["correct"] for score in parts) == 40
        assert sum(score["verifiable"] for score in parts) == 60


@pytest.mark.slow
def test_the_bundled_model_learns_most_tasks_whose_answer_is_in_the_form(tmp_path):
    script = ROOT / "ch07/01_main-chapter-code/gpt_instruction_finetuning.py"
    folder = tmp_path / "run"
    command = [sys.executable, str(script), "--preset", "word-tasks", "--out", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    answered = json.loads((folder / "instruction-data-with-response.json").read_text("utf-8"))
    scores = score_by_kind(answered, [entry["model_response"] for entry in answered])
    form = scores["sort form"]
    assert form["correct"] >= 0.5 * form["verifiable"]
