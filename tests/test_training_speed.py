"""Faster training is the same training: losses, weights, batches, and an honest clock."""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ROOT
from torch import nn

from llms_from_scratch import training_speed
from llms_from_scratch.app.speed_scripts import (
    PADDED_VOCAB_SIZE,
    out_folder,
    speed_parser,
    split_text,
)
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.ch03 import PyTorchMultiHeadAttention
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.ch05 import calc_loss_batch, train_model_simple
from llms_from_scratch.data import SAMPLES
from llms_from_scratch.training.distributed import free_port
from llms_from_scratch.training_speed import (
    AdamWWithMasters,
    GPTModelForTraining,
    MatmulAttention,
    TokenClock,
    calc_loss_in_chunks,
    create_distributed_dataloader,
    make_optimizer,
    train_model_simple_with_timing,
    use_matmul_attention,
    wants_compile,
)

FOLDER = ROOT / "ch05" / "10_llm-training-speed"
SCRIPTS = ["00_orig.py", "01_opt_single_gpu.py", "02_opt_multi_gpu_ddp.py"]
STORY = SAMPLES / "short-story.txt"
CONFIG = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
SMALL = CONFIG | {"vocab_size": 101}
SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.1}
LINE = re.compile(
    r"Ep (\d+), Step (\d{6}), Train: (\d+\.\d{3}), Val: (\d+\.\d{3}), "
    r"Step tok/sec: (\d+|-), Avg tok/sec: (\d+|-)"
)


@pytest.fixture(autouse=True)
def _precision_of_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def script(name: str):
    """One of the scripts as a module."""
    spec = importlib.util.spec_from_file_location("script", FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sizes_for(module, **changes):
    settings = {
        "num_epochs": 2,
        "batch_size": 16,
        "eval_freq": 10,
        "num_workers": 0,
        "eval_iter": 2,
    }
    return CONFIG, module.OTHER_SETTINGS | settings | {"num_workers": 0} | changes


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


# --- The scripts ---


@pytest.fixture(scope="module")
def baseline():
    module = script("00_orig.py")
    return module.main(*sizes_for(module), data=STORY, device="cpu")


def test_the_fast_script_in_float32_trains_as_the_baseline_does(baseline):
    module = script("01_opt_single_gpu.py")
    results = module.main(*sizes_for(module, dtype="float32"), data=STORY, device="cpu")
    for ours, theirs in zip(results[:2], baseline[:2], strict=True):
        assert len(ours) > 3
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert results[2] == baseline[2]


def test_bfloat16_follows_the_losses_of_float32(baseline):
    module = script("01_opt_single_gpu.py")
    results = module.main(*sizes_for(module), data=STORY, device="cpu")
    assert results[3].tok_emb.weight.dtype == torch.bfloat16
    assert results[0] == pytest.approx(baseline[0], abs=2e-3)
    assert results[0][0] - results[0][-1] > 0.1  # something was learned


def options(out, *more):
    return "--preset", "tiny", "--data", STORY, "--batch-size", "16", "--out", out, *more


@pytest.fixture(scope="module", params=SCRIPTS)
def finished(request, tmp_path_factory):
    """Name, printed lines and folder of a script's run, the last one's in a process of its own."""
    path, out = FOLDER / request.param, tmp_path_factory.mktemp("runs") / "a"
    if request.param == SCRIPTS[2]:
        done = run(path, *options(out, "--dtype", "float32"), MASTER_PORT=str(free_port()))
        assert done.returncode == 0, done.stderr
        return request.param, done.stdout.splitlines(), out
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        patch.setattr(sys, "argv", [str(path), *map(str, options(out))])
        patch.setattr(sys, "excepthook", sys.excepthook)
        runpy.run_path(str(path), run_name="__main__")
    return request.param, printed.getvalue().splitlines(), out


def test_scripts_log_in_one_format_and_write_what_they_say(finished):
    name, printed, out = finished
    lines = [LINE.fullmatch(line) for line in printed if line.startswith("Ep ")]
    assert [match[2] for match in lines] == ["000000", "000005"]
    assert lines[0].groups()[4:] == ("-", "-")  # the first update is no measurement
    assert all(int(speed) > 0 for speed in lines[1].groups()[4:])
    assert {path.name for path in out.iterdir()} == {"loss.pdf", "losses.json", "model.pth"}
    state = torch.load(out / "model.pth", weights_only=True)
    assert len(state["out_head.weight"]) == 50257  # no padding


@pytest.mark.parametrize("finished", SCRIPTS[2:], indirect=True)
def test_two_processes_give_the_losses_of_one(finished, tmp_path):
    name, _, one = finished
    done = run(
        *("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"),
        *(FOLDER / name, *options(tmp_path / "2", "--dtype", "float32", "--batch-size", "8")),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Step 000000") == 1  # one process prints
    found, expected = (
        json.loads((folder / "losses.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "2", one)
    )
    for key in ("train_losses", "val_losses"):
        assert len(found[key]) == 2
        assert found[key] == pytest.approx(expected[key], abs=1e-5)
    assert found["tokens_seen"] == expected["tokens_seen"]
    states = [
        torch.load(folder / "model.pth", weights_only=True) for folder in (tmp_path / "2", one)
    ]
    for key, weight in states[1].items():
        torch.testing.assert_close(states[0][key], weight, rtol=0, atol=1e-4, msg=key)


def test_a_run_is_not_overwritten_unless_asked(tmp_path):
    parser = speed_parser("", "name", fast=False)
    (tmp_path / "model.pth").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds the results of another run"):
        out_folder(parser.parse_args(["--out", str(tmp_path)]), "name")
    args = parser.parse_args(["--out", str(tmp_path), "--overwrite"])
    assert out_folder(args, "name") == tmp_path
    assert (tmp_path / "model.pth").read_bytes() == b"precious"  # until the new run ends


def test_a_text_that_fills_no_batch_is_named():
    module = script("01_opt_single_gpu.py")
    with pytest.raises(ValueError, match="windows, which do not fill a single batch of 3000"):
        module.main(*sizes_for(module, batch_size=3000), data=STORY, device="cpu")


# --- The loop ---


def tiny_loaders():
    ids = torch.randint(101, (40, 17), generator=torch.Generator().manual_seed(0))
    rows = [(row[:-1], row[1:]) for row in ids]
    torch.manual_seed(3)
    return [torch.utils.data.DataLoader(rows, 8, shuffle=shuffle) for shuffle in (True, False)]


class Words:
    def encode(self, text, **options):
        return [1, 2, 3]

    def decode(self, ids):
        return " ".join(map(str, ids))


def train(function, **options):
    torch.manual_seed(123)
    model = GPTModel(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    results = function(model, *tiny_loaders(), optimizer, "cpu", 3, 2, 3, "a", Words(), **options)
    return model, results


def test_the_timing_loop_gives_the_numbers_of_the_book_loop(capsys):
    expected_model, expected = train(train_model_simple)
    samples = [line for line in capsys.readouterr().out.splitlines() if line[0].isdigit()]
    model, results = train(train_model_simple_with_timing)
    printed = capsys.readouterr().out.splitlines()
    for ours, theirs in zip(results, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    for name, weight in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert [line for line in printed if line[0].isdigit() and "updates" not in line] == samples
    assert printed[-1].startswith("15 updates")


def test_the_clock_leaves_out_evaluation_samples_and_the_first_update(monkeypatch, capsys):
    """With a clock that goes on by known amounts, the speeds are known too."""
    now = itertools.count(0.0)  # each look at the clock is a second later than the one before
    elapsed = [0.0]

    def perf_counter():
        return elapsed[0]

    def loss(*args):
        elapsed[0] += 0.5 if next(now) else 100.0  # the first one "compiles"
        return calc_loss_batch(*args)

    def slow(*args):
        elapsed[0] += 1000.0
        return 1.0

    monkeypatch.setattr(training_speed.time, "perf_counter", perf_counter)
    monkeypatch.setattr(training_speed, "mean_loss", slow)
    monkeypatch.setattr(training_speed, "generate_and_print_sample", slow)
    train(train_model_simple_with_timing, calc_loss=loss)
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    speed = str(8 * 16 * 2)  # 128 tokens in half a second
    assert [match.groups()[4:] for match in lines] == [("-", "-")] + [(speed, speed)] * 7


def test_too_few_updates_give_no_speed():
    clock = TokenClock("cpu")
    clock.start()
    assert clock.lap() is None and not clock.is_warm  # nothing has happened yet
    clock.count(5)
    assert clock.lap() is None and clock.average is None
    clock.start()
    assert clock.lap() is None and clock.average is None
    assert "too few" in training_speed.summary(1, clock.average, torch.device("cpu"))


def test_peak_memory_counts_what_lives_at_the_same_time_and_views_once():
    given = torch.zeros(100)
    with training_speed.PeakMemory([given, given]) as memory:
        assert memory.now == 400
        first = torch.zeros(1000)
        view = first[5:]
        assert memory.now == 4400
        del first
        assert memory.now == 4400  # the view keeps it
        del view
        assert memory.now == 400
        other = torch.ones(10, dtype=torch.float64) * 2  # two of 80 bytes for a moment
    assert (memory.now, memory.peak) == (480, 4400)
    del given
    assert memory.now == 80 and len(other) == 10


def test_peak_memory_of_training_is_weights_gradients_adamw_and_logits():
    torch.manual_seed(0)
    ids = torch.randint(5000, (2, 16, 16))
    peaks = {}
    for name, model, calc_loss in (
        ("whole", GPTModelFast(CONFIG | {"vocab_size": 5000}), calc_loss_batch),
        (
            "chunks",
            GPTModelForTraining(CONFIG | {"vocab_size": 5000}, None, 8),
            calc_loss_in_chunks,
        ),
    ):
        optimizer = make_optimizer(model, SETTINGS)
        for _ in range(2):
            states = [t for state in optimizer.state.values() for t in state.values()]
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            with training_speed.PeakMemory([*model.parameters(), *states, *gradients]) as memory:
                optimizer.zero_grad()
                calc_loss(*ids, model, "cpu").backward()
                optimizer.step()
        peaks[name] = memory.peak
    kept = 16 * sum(p.numel() for p in model.parameters())
    logits = 4 * 256 * 5000
    assert peaks["whole"] > kept + 1.5 * logits
    assert kept <= peaks["chunks"] < kept + 0.5 * logits


def test_a_loader_without_batches_is_named():
    with pytest.raises(ValueError, match="the training data have no batch"):
        train_model_simple_with_timing(None, [], [], None, "cpu", 1, 1, 1, "a")


# --- Data of several processes ---


@pytest.mark.parametrize("world_size", [2, 3])
def test_batches_of_all_processes_are_those_of_one(world_size):
    text = STORY.read_text(encoding="utf-8")[:4000]
    (alone,) = loaders(text, 1, 4 * world_size)
    shares = loaders(text, world_size, 4)
    for epoch in range(2):
        for loader in (alone, *shares):
            loader.sampler.set_epoch(epoch)
        for whole, *parts in zip(alone, *shares, strict=True):
            together = torch.stack([ids for ids, _ in parts], dim=1).flatten(0, 1)
            assert torch.equal(together, whole[0])


def loaders(text, world_size, batch_size, **options):
    return [
        create_distributed_dataloader(
            text, batch_size, 16, 16, rank=rank, world_size=world_size, **options
        )
        for rank in range(world_size)
    ]


def test_every_window_of_the_validation_text_is_read_by_one_process():
    text = STORY.read_text(encoding="utf-8")[:4000]
    whole = create_dataloader_v1(text, 1, 16, 16, shuffle=False, drop_last=False)
    expected = {tuple(ids[0].tolist()) for ids, _ in whole}
    found = [
        tuple(row.tolist())
        for loader in loaders(text, 3, 4, shuffle=False)
        for ids, _ in loader
        for row in ids
    ]
    assert len(found) == len(expected) and set(found) == expected


def test_too_few_windows_for_all_processes_are_named():
    with pytest.raises(ValueError, match=r"do not fill a single batch of 500 in each process \(2"):
        loaders(STORY.read_text(encoding="utf-8"), 2, 500)


# --- The model and the optimizer ---


def test_the_model_with_padding_is_the_chapters_model():
    torch.manual_seed(1)
    fast = GPTModelFast(SMALL)
    torch.manual_seed(1)
    model = GPTModelForTraining(SMALL, padded_vocab_size=128, chunk_size=5)
    ids, targets = torch.randint(101, (2, 3, 16))
    torch.testing.assert_close(model(ids), fast(ids))
    loss = calc_loss_batch(ids, targets, fast, "cpu")
    torch.testing.assert_close(calc_loss_in_chunks(ids, targets, model, "cpu"), loss)
    loss.backward()
    model(ids, targets).backward()
    for name, parameter in fast.named_parameters():
        found = model.get_parameter(name).grad[: len(parameter)]
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert model.tok_emb.weight.shape == (128, 16)
    fast.load_state_dict(model.unpadded_state_dict())
    with pytest.raises(ValueError, match="a vocabulary of 101 cannot be padded to 100"):
        GPTModelForTraining(SMALL, padded_vocab_size=100)


def test_a_sample_is_always_a_token_of_the_vocabulary():
    model = GPTModelForTraining(CONFIG, PADDED_VOCAB_SIZE)
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 50257)


@pytest.mark.parametrize("num_tokens", [1, 7, 16])
def test_attention_from_matrix_products_is_the_fused_one(num_tokens):
    torch.manual_seed(2)
    fused = PyTorchMultiHeadAttention(12, 12, 3, qkv_bias=True).double()
    x = torch.randn(2, num_tokens, 12, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, expected = MatmulAttention(fused)(x), fused(y)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_attention_is_replaced_without_changing_names_or_weights():
    model = GPTModelForTraining(SMALL)
    before = model.state_dict()
    use_matmul_attention(model)
    assert list(model.state_dict()) == list(before)
    assert all(model.state_dict()[name] is not None for name in before)
    assert isinstance(model.trf_blocks[1].att, MatmulAttention)


def test_masters_keep_the_small_updates_that_bfloat16_loses():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = AdamWWithMasters(layer, lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    assert layer.weight.dtype == torch.bfloat16
    assert optimizer.masters[0].item() == pytest.approx(0.99, abs=1e-4)
    assert layer.weight.item() == pytest.approx(0.99, abs=2e-3)  # one alone would still be 1


def test_masters_begin_at_the_weights_before_rounding_and_tied_ones_count_once():
    torch.manual_seed(4)
    model = GPTModelForTraining(SMALL)
    model.out_head.weight = model.tok_emb.weight
    exact = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, SETTINGS, torch.bfloat16)
    assert all(map(torch.equal, optimizer.masters, exact))
    assert model.out_head.weight is model.tok_emb.weight
    assert optimizer.defaults["fused"]


def test_a_weight_without_a_gradient_stays_as_it_is():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = AdamWWithMasters(layers, lr=0.1)
    before = layers[1].weight.detach().clone()
    layers[0](torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert torch.equal(layers[1].weight, before)
    assert not torch.equal(layers[0].weight.float(), optimizer.masters[0] * 0)


def test_compilation_is_refused_where_it_cannot_work_and_off_by_default_on_a_cpu(monkeypatch):
    cpu = torch.device("cpu")
    assert wants_compile(None, cpu) is False and wants_compile(False, cpu) is False
    monkeypatch.setattr(training_speed.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="--compile: it needs a C"):
        wants_compile(True, cpu)


def test_the_text_is_split_by_characters():
    train_text, val_text = split_text(STORY)
    whole = Path(STORY).read_text(encoding="utf-8")
    assert train_text + val_text == whole and len(train_text) == int(0.9 * len(whole))
