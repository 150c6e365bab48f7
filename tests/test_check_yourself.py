"""The questions at the end of the main notebooks: each number or shape among the answers is
computed here, and each coding task's solution passes the check that the reader runs.

A notebook takes part if it has a heading "## Check yourself". A question starts with its number,
``**3.**``, and its answer is folded: ``<details><summary>Answer</summary>``, with what is to be
computed in bold at its beginning. ``COMPUTED`` has a function for each such answer. A coding task
is followed by a cell with a function to be written and a check; its folded answer is the solution.
"""

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch
from answers import ANSWERS

from llms_from_scratch import ch06, ch07
from llms_from_scratch.judge import agreement

ROOT = Path(__file__).resolve().parent.parent
HEADING = "## Check yourself"
QUESTION = re.compile(r"^\*\*(\d+)\.\*\* ", re.MULTILINE)
FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n(.*?)\n</details>", re.DOTALL)
SOLUTION = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass
class Question:
    number: int
    text: str
    answer: str = ""
    cell: str = ""  # of a coding task: the function to be written and its check

    @property
    def bold(self) -> str:
        """What the answer says in bold at its beginning."""
        found = re.match(r"\*\*(.+?)\*\*", self.answer)
        return found[1] if found else ""


def questions_of(path: Path) -> list[Question]:
    found, started = [], False
    for cell in nbformat.read(path, as_version=4).cells:
        started = started or HEADING in cell.source
        if not started:
            continue
        if cell.cell_type == "code":
            found[-1].cell = cell.source
            continue
        source = cell.source.partition(HEADING)[2] or cell.source
        before, *numbered = QUESTION.split(source)
        add_answer(found, before)
        for number, text in zip(numbered[::2], numbered[1::2], strict=True):
            found.append(Question(int(number), text))
            add_answer(found, text)
    return found


def add_answer(found: list[Question], text: str) -> None:
    folded = FOLDED.search(text)
    if folded and found:
        found[-1].answer = folded[1].strip()


NOTEBOOKS = {
    path.stem: path
    for path in sorted(ROOT.glob("*/01_main-chapter-code/*.ipynb"))
    if HEADING in path.read_text(encoding="utf-8")
}
all_notebooks = pytest.mark.parametrize("name", NOTEBOOKS)


# --- Chapter 6


def classified(num_tokens: int = 64) -> torch.Tensor:
    """The logits of eight messages, from a small GPT with two classes."""
    from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel

    sizes = {"vocab_size": 100, "context_length": 64, "emb_dim": 12, "n_heads": 2, "n_layers": 1}
    model = GPTModel(BASE_CONFIG | sizes)
    ch06.replace_output_head(model, 2)
    with torch.no_grad():
        return model(torch.zeros(8, num_tokens, dtype=torch.long))


def chance_loss() -> str:
    loss = torch.nn.functional.cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]))
    return f"{loss:.3f}"


def num_updates(rows: int) -> int:
    return len(torch.utils.data.DataLoader(range(rows), 8, drop_last=True))


CONFUSION = torch.tensor([[148, 2], [6, 144]])

# --- Chapter 7

ROWS = [[1, 2, 3], [4]]


def target_row(index: int, **options) -> list[int]:
    return ch07.custom_collate_fn(ROWS, **options)[1][index].tolist()


def num_padded(lengths: list[int]) -> int:
    rows = ch07.custom_collate_draft_1([[1] * n for n in lengths], pad_token_id=0)
    return int((rows == 0).sum())


def num_headings() -> int:
    entry = {"instruction": "Say hello.", "input": "", "output": "Hello."}
    return ch07.format_input(entry).count("###")


COMPUTED: dict[tuple[str, int], Callable[[], object]] = ANSWERS | {
    ("ch06", 1): lambda: f"{100 * 4825 / 5572:.2f}",
    ("ch06", 2): lambda: 100 * 747 // (747 + 747),
    ("ch06", 3): lambda: ch06.pad_or_cut([7, 8, 9], 5, 0),
    ("ch06", 4): lambda: tuple(classified().shape),
    ("ch06", 5): lambda: tuple(classified()[:, -1, :].shape),
    ("ch06", 6): lambda: sum(p.numel() for p in torch.nn.Linear(576, 2).parameters()),
    ("ch06", 7): chance_loss,
    ("ch06", 8): lambda: num_updates(1045),
    ("ch06", 11): lambda: f"{100 * CONFUSION.trace().item() / 300:.2f}",
    ("ch06", 12): lambda: f"{100 * (CONFUSION[1, 0] / CONFUSION[1].sum()).item():.1f}",
    ("ch07", 1): lambda: tuple(ch07.custom_collate_draft_1(ROWS).shape),
    ("ch07", 2): lambda: target_row(1),
    ("ch07", 3): lambda: target_row(0),
    ("ch07", 4): lambda: int((ch07.custom_collate_fn(ROWS)[1] != ch07.IGNORE_INDEX).sum()),
    ("ch07", 5): lambda: target_row(0, allowed_max_length=2),
    ("ch07", 6): lambda: len(ch07.split_data([{}] * 1100)[1]),
    ("ch07", 7): lambda: num_updates(935),
    ("ch07", 8): lambda: num_padded([40, 50, 60]),
    ("ch07", 9): num_headings,
    ("ch07", 13): lambda: agreement([90] * 5, [True, True, False, False, False]),
}


@all_notebooks
def test_there_are_ten_questions_in_order_and_each_has_a_folded_answer(name):
    questions = questions_of(NOTEBOOKS[name])
    assert len(questions) >= 10
    assert [q.number for q in questions] == list(range(1, len(questions) + 1))
    for question in questions:
        assert question.answer, f"{name}, question {question.number} has no folded answer"


@all_notebooks
def test_each_number_and_each_shape_among_the_answers_is_computed(name):
    for question in questions_of(NOTEBOOKS[name]):
        if not question.cell and re.search(r"\d|\[", question.bold):
            value = COMPUTED[name, question.number]()
            assert str(value) == question.bold, f"{name}, question {question.number}"


@all_notebooks
def test_nothing_is_computed_for_a_question_that_is_not_asked(name):
    asked = {q.number for q in questions_of(NOTEBOOKS[name]) if re.search(r"\d|\[", q.bold)}
    assert {number for chapter, number in COMPUTED if chapter == name} <= asked


def printed_by(source: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(source, {})
    return out.getvalue().strip()


@all_notebooks
def test_two_tasks_are_code_and_their_checks_accept_the_solution_only(name):
    tasks = [question for question in questions_of(NOTEBOOKS[name]) if question.cell]
    assert len(tasks) >= 2
    for task in tasks:
        head, check = task.cell.split("\n\n\n")
        solution = SOLUTION.search(task.answer)[1]
        assert printed_by(task.cell) == "not written yet"
        assert printed_by(f"{solution}\n\n{check}") == "right"
        wrong = head.replace("return None  # your code", "return 12345")
        assert printed_by(f"{wrong}\n\n{check}") == "wrong"
