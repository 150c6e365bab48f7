"""The plan of a training run against what a real one takes."""

import json
from itertools import pairwise

import pytest
import torch

from llms_from_scratch.app.cli import main
from llms_from_scratch.ch04 import GPT_CONFIG_124M, GPTModel, model_configs
from llms_from_scratch.ch05 import calc_loss_batch
from llms_from_scratch.flops import bytes_kept_for_backward, count_flops
from llms_from_scratch.training.parallel import checkpoint_activations
from llms_from_scratch.training.plan import (
    PlannedRun,
    count_parameters,
    flops_per_token,
    hours,
    memory,
    peak,
)

CONFIG = GPT_CONFIG_124M | {
    "emb_dim": 192,
    "n_heads": 6,
    "n_layers": 4,
    "context_length": 64,
    "vocab_size": 3000,
}


class Training:
    """One step after the other, as the trainer makes them."""

    def __init__(self, run: PlannedRun):
        self.model = GPTModel(run.cfg)
        if run.activation_checkpointing:
            checkpoint_activations(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.ids = torch.zeros(run.rows, run.cfg["context_length"], dtype=torch.long)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=run.dtype == "bf16")

    def loss(self):
        with self.autocast:
            return calc_loss_batch(self.ids, self.ids, self.model, "cpu")

    def step(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def bytes_between_steps(self) -> dict[str, int]:
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        weights = sum(p.nbytes for p in self.model.parameters())
        return {"weights": weights, "AdamW": sum(value.nbytes for value in state)}

    def bytes_in_a_step(self) -> int:
        """The most that PyTorch has allocated for the CPU since the step began."""
        self.optimizer.zero_grad()
        with torch.profiler.profile(profile_memory=True) as profile:
            self.step()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("again", [False, True])
def test_a_real_step_takes_the_memory_that_was_planned(rows, dtype, again):
    check_a_real_step(PlannedRun(CONFIG, rows, dtype=dtype, activation_checkpointing=again), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_real_step_of_gpt2_small_takes_the_memory_that_was_planned(again):
    cfg = GPT_CONFIG_124M | {"context_length": 256}
    check_a_real_step(PlannedRun(cfg, 2, activation_checkpointing=again), 0.15)


def check_a_real_step(run: PlannedRun, tolerance: float) -> None:
    training = Training(run)
    training.step()
    kept = training.bytes_between_steps()
    planned = memory(run)
    for purpose, measured in kept.items():
        assert measured == pytest.approx(planned[purpose], rel=0.001)
    whole = sum(kept.values()) + planned["masks"] + training.bytes_in_a_step()
    print(f"planned {peak(run):,}, measured {whole:,} bytes")
    assert peak(run) == pytest.approx(whole, rel=tolerance)


def test_activations_are_those_that_autograd_keeps():
    training, planned = Training(run := PlannedRun(CONFIG, 4)), memory(PlannedRun(CONFIG, 4))
    logits = 4 * run.rows * CONFIG["context_length"] * CONFIG["vocab_size"]
    kept = bytes_kept_for_backward(training.model, training.loss)
    assert kept == pytest.approx(planned["activations"] + logits, rel=0.01)
    assert planned["logits"] == 3 * logits


@pytest.mark.parametrize("size", model_configs)
def test_parameters_are_those_of_the_model(size):
    cfg = GPT_CONFIG_124M | model_configs[size]
    with torch.device("meta"):
        model = GPTModel(cfg)
    assert count_parameters(cfg)[0] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("again", [False, True])
def test_arithmetic_is_what_pytorch_counts(again):
    run = PlannedRun(CONFIG, 2, activation_checkpointing=again)
    training = Training(run)
    counted = count_flops(lambda: training.loss().backward())
    assert flops_per_token(run) * training.ids.numel() == pytest.approx(counted, rel=0.01)


def test_each_way_to_save_memory_saves_some():
    runs = [
        PlannedRun(CONFIG, 8, "ddp", 2),
        PlannedRun(CONFIG, 8, "fsdp", 2),
        PlannedRun(CONFIG, 8, "fsdp", 4),
        PlannedRun(CONFIG, 8, "fsdp", 4, activation_checkpointing=True),
    ]
    assert all(peak(more) > peak(less) for more, less in pairwise(runs))
    assert peak(PlannedRun(CONFIG, 8)) < peak(PlannedRun(CONFIG, 8, accumulate=2))  # gradients stay


def test_hours_come_from_either_speed():
    run = PlannedRun(CONFIG, 8, "ddp", 4)
    assert hours(run, 7.2e6, tokens_per_second=1000) == 2
    tflops = flops_per_token(run) * 250 / 1e12
    assert hours(run, 7.2e6, tflops=tflops) == pytest.approx(2)


def test_the_command_prints_a_table_and_the_time(capsys, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"config": CONFIG}), encoding="utf-8")
    options = "--batch_size 8 --parallel fsdp --ranks 8 --dtype bf16 --tokens 3.6e6"
    source = ["plan", "--model", str(tmp_path / "settings.json")]
    assert main([*source, *options.split(), "--tokens_per_second", "1000"]) == 0
    printed = capsys.readouterr().out
    for wanted in (
        "8 rows of 64 tokens, bf16, fsdp on 8",
        "AdamW",
        "at most",
        "1.0 hours for 3,600,000",
    ):
        assert wanted in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch_size 9 --parallel ddp --ranks 2", "9 rows cannot be dealt evenly to 2 ranks"),
        ("--ranks 2", "2 ranks need a way to share the work"),
        ("--model gpt5", "--model gpt5 is neither one of gpt2-small"),
        ("--context_length 0", "--context_length must be above 0, got 0"),
        ("--tflops -1", "--tflops must be above 0, got -1.0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(capsys, options, message):
    with pytest.raises(SystemExit) as end:
        main(["plan", *options.split()])
    assert end.value.code == 2 and message in capsys.readouterr().err
