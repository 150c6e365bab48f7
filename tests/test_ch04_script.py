"""ch04's gpt.py: the book's output to the letter, from any folder, with short error messages."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import run_script

FOLDER = Path(__file__).resolve().parent.parent / "ch04" / "01_main-chapter-code"

BOOK_OUTPUT = """
==================================================
                      IN
==================================================

Input text: Hello, I am
Encoded input text: [15496, 11, 314, 716]
encoded_tensor.shape: torch.Size([1, 4])


==================================================
                      OUT
==================================================

Output: tensor([[15496,    11,   314,   716, 27018, 24086, 47843, 30961, 42348,  7267,
         49706, 43231, 47062, 34657]])
Output length: 14
Output text: Hello, I am Featureiman Byeswickattribute argue logger Normandy Compton analogous
"""

EXPORTS = """GPTDatasetV1 create_dataloader_v1 MultiHeadAttention LayerNorm GELU FeedForward
TransformerBlock GPTModel generate_text_simple main""".split()


def gpt_py(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return run_script(FOLDER / "gpt.py", *arguments, cwd=folder)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_default_output_is_the_books(tmp_path):
    done = gpt_py(folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == lines(BOOK_OUTPUT)
    assert done.stderr == ""  # no progress bar where there is no terminal


def test_tiny_preset_takes_its_options_in_another_folder_and_leaves_nothing(tmp_path):
    options = ["--preset", "tiny", "--prompt", "Once upon a time", "--seed", "7"]
    done = gpt_py(*options, "--max-new-tokens", "40", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Encoded input text: [7454, 2402, 257, 640]" in lines(done.stdout)
    assert "Output length: 44" in lines(done.stdout)  # more than the context of 32 tokens
    assert list(tmp_path.iterdir()) == []
    other_seed = gpt_py(*options[:-1], "8", folder=tmp_path)
    assert lines(done.stdout)[-1] != lines(other_seed.stdout)[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--prompt", "word " * 50],
            "the prompt has 51 tokens, but the model's context_length is 32: shorten the prompt",
        ),
        (
            ["--prompt", ""],
            "the prompt is empty: the model needs at least one token to continue",
        ),
        (["--max-new-tokens", "-1"], "--max-new-tokens must be at least 0, got -1"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(options, message, tmp_path):
    done = gpt_py("--preset", "tiny", *options, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"gpt.py: error: {message}\n"


def test_the_device_can_be_chosen_and_an_unknown_one_is_refused(tmp_path):
    done = gpt_py("--preset", "tiny", "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = gpt_py("--preset", "tiny", "--device", "abacus", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "device 'abacus' cannot be used" in done.stderr and done.stderr.count("\n") == 1


def test_a_notebook_in_the_folder_can_import_every_name_of_the_book():
    command = [sys.executable, "-c", f"from gpt import {', '.join(EXPORTS)}"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_names_every_option(tmp_path):
    done = gpt_py("--help", folder=tmp_path)
    assert done.returncode == 0
    for option in ("--prompt", "--max-new-tokens", "--seed", "--preset", "--device"):
        assert option in done.stdout
