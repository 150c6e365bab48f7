"""``choose_strongest``: the first model that can be had, and a line that says why not another."""

import pytest

from llms_from_scratch.data import DownloadError
from llms_from_scratch.weights import pretrained


@pytest.fixture
def at_hand(monkeypatch):
    """Only the models of the returned set can be had."""
    names = {"gpt2-tiny"}

    def load(name):
        if name not in names:
            raise DownloadError(f"no {name}")
        return pretrained.Pretrained(name, {}, None)

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    return names


@pytest.mark.parametrize(
    ("have", "chosen", "line"),
    [
        ({"a", "b"}, "a", "Model: a\n"),
        ({"b"}, "b", "Model: b (a could not be had)\n"),
        (set(), "gpt2-tiny", "Model: gpt2-tiny (a and b could not be had)\n"),
    ],
)
def test_the_first_model_at_hand_is_taken_and_the_line_says_why(
    at_hand, capsys, have, chosen, line
):
    at_hand |= have
    assert pretrained.choose_strongest("a", "b").name == chosen
    assert capsys.readouterr().out == line


def test_the_bundled_model_comes_with_its_tokenizer(capsys):
    chosen = pretrained.choose_strongest()
    assert chosen.name == "gpt2-tiny" and chosen.tokenizer.n_vocab == 50257
