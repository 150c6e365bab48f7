"""tools/check_gguf_with_llama_cpp.py: what differs from ours is told, and ends with exit code 1."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from llms_from_scratch.weights.pretrained import load_pretrained

PATH = Path(__file__).resolve().parent.parent / "tools" / "check_gguf_with_llama_cpp.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("check_gguf_with_llama_cpp", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # for dataclasses
    spec.loader.exec_module(module)
    return module


class StandIn:
    """llama_cpp.Llama on our own model, with an error of a chosen size from some length on."""

    def __init__(self, path, n_ctx, error=0.0, shift=0, **options):
        self.loaded, self.error, self.shift = load_pretrained(path), error, shift
        self.input_ids, self.n_tokens = np.zeros(n_ctx, dtype=int), 0
        self.scores = np.zeros((n_ctx, self.loaded.config["vocab_size"]), dtype=np.float32)

    def tokenize(self, text, add_bos, special):
        return [i + self.shift for i in self.loaded.tokenizer.encode_ordinary(text.decode())]

    @torch.no_grad()
    def eval(self, ids):
        end = self.n_tokens + len(ids)
        self.input_ids[self.n_tokens : end] = ids
        self.n_tokens = end
        logits = self.loaded.model(torch.tensor([self.input_ids[:end].tolist()]))[0].numpy()
        self.scores[:end] = logits
        self.scores[end - 1, 7] += self.error


def run(tool, monkeypatch, *arguments, **faults):
    fake = types.ModuleType("llama_cpp")
    fake.__version__, fake.GGML_TYPE_F32 = "0", 0
    fake.Llama = lambda path, **options: StandIn(path, **(options | faults))
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    return tool.main()


ARGUMENTS = ("--random", "qwen3", "--dtype", "F32", "--tokens", "2")


def test_equal_computing_is_within_the_tolerance(tool, monkeypatch, capsys):
    assert run(tool, monkeypatch, *ARGUMENTS) == 0
    printed = capsys.readouterr().out
    assert "| random qwen3 | F32 | 0 | 0 | 8 of 8 |" in printed


def test_rounding_of_inputs_is_measured_and_tolerated_by_type(tool, monkeypatch, capsys):
    arguments = ("--random", "qwen3", "--dtype", "F16", "Q8_0", "--tokens", "2")
    assert run(tool, monkeypatch, *arguments) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "random" in line]
    assert [row[1] for row in rows] == ["F16", "Q8_0"]
    assert 0 < float(rows[0][3]) < float(rows[1][3]) < 1


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"error": 0.02}, "a logit differs by 0.02, beyond 0.01"),
        ({"error": 99.0}, "other tokens are generated"),
        ({"error": float("nan")}, "a logit differs by nan"),
        ({"shift": 1}, "token ids of a prompt are others"),
    ],
)
def test_what_differs_is_told_and_is_a_failure(tool, monkeypatch, capsys, faults, message):
    assert run(tool, monkeypatch, *ARGUMENTS, **faults) == 1
    assert message in capsys.readouterr().out


def test_without_llama_cpp_the_command_that_installs_it_is_named(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(sys, "argv", ["check", "gpt2-tiny"])
    with pytest.raises(SystemExit, match="pip install llama-cpp-python"):
        tool.main()


@pytest.mark.parametrize("arguments", [[], ["gpt2-tiny", "--tokens", "0"]])
def test_wrong_arguments_are_refused(tool, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 2
