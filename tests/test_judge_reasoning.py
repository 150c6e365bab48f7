"""Answers of judges that think aloud first, and numbers dressed up in other ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llms_from_scratch.judge import parse_score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("<think>Out of 10 I would say 8, or 7?</think>\n\n85", 85),
        ("<think>\nScore: 20\n</think>\nScore: 85/100", 85),
        ("<THINK>20</THINK> **85**", 85),
        ("It says 4 of 5 facts.</think> 80", 80),  # a template has put the first mark
        ("<think>one</think> 20 <think>two: 30</think> 40", 40),
        ("<think>The score is 85", None),  # cut while it was thinking
        ("<think>85</think>", None),
        ("<think>85</think> I cannot say.", None),
        ("<think>7</think><html>85</html>", None),
        ("Score: 85/100", 85),
        ("**85**", 85),
        ("85.0", 85),
        ("Score: 185/100", None),
        ("Score: -5/100", None),
        ("Score: 100.4", None),
        ("Score: 85, not 60", 85),
        ("60 or 85", None),
    ],
)
def test_thoughts_before_the_answer_do_not_count(answer, score):
    assert parse_score(answer) == score


@given(thoughts=st.text(), score=st.integers(0, 100))
def test_whatever_a_judge_thinks_its_answer_counts(thoughts, score):
    assert parse_score(f"<think>{thoughts}</think>Score: {score}") == score


@given(thoughts=st.text().filter(lambda text: "</think" not in text.casefold()))
def test_thoughts_without_an_end_have_no_score(thoughts):
    assert parse_score(f"<think>{thoughts}") is None
