"""Training: the script's loop is the book's, and it continues exactly where it stopped."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch05 import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    train_model_simple,
)
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training import checkpoint as checkpoint_module
from llms_from_scratch.training.checkpoint import (
    CheckpointError,
    describe_vocabulary,
    load_checkpoint,
    save_checkpoint,
)
from llms_from_scratch.training.loop import Trainer

CONFIG = {
    "vocab_size": 50257,
    "context_length": 8,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TEXT = "A quick brown fox jumps over the lazy dog; the dog, being lazy, lets it pass. " * 12


def new_run(seed=123, **options):
    """A model with dropout, shuffled data, accumulation, clipping and a schedule."""
    torch.manual_seed(seed)
    model = GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    train_loader = create_dataloader_v1(TEXT, batch_size=3, max_length=8, stride=8)
    val_loader = create_dataloader_v1(TEXT[:200], 2, 8, 8, shuffle=False, drop_last=False)
    defaults = {
        "num_epochs": 3,
        "eval_freq": 3,
        "eval_iter": 2,
        "accumulate": 2,
        "max_grad_norm": 1.0,
        "scheduler": scheduler,
        "config": CONFIG,
    }
    return Trainer(model, optimizer, train_loader, val_loader, "cpu", **(defaults | options))


def assert_same_state(a: Trainer, b: Trainer):
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name
    for one, other in zip(
        a.optimizer.state_dict()["state"].values(),
        b.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    assert a.scheduler.state_dict() == b.scheduler.state_dict()
    for field in (
        "epoch",
        "batch",
        "step",
        "tokens_seen",
        "step_losses",
        "train_losses",
        "val_losses",
        "track_tokens_seen",
    ):
        assert getattr(a.progress, field) == getattr(b.progress, field), field
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())


def test_without_extras_the_trainer_gives_the_numbers_of_train_model_simple(capsys):
    trainer = new_run(scheduler=None, accumulate=1, max_grad_norm=None)
    trainer.run()
    again = new_run(scheduler=None, accumulate=1, max_grad_norm=None)
    losses = train_model_simple(
        again.model,
        again.train_loader,
        again.val_loader,
        again.optimizer,
        "cpu",
        num_epochs=3,
        eval_freq=3,
        eval_iter=2,
        start_context="A quick",
        tokenizer=get_tokenizer(),
    )
    progress = trainer.progress
    assert losses == (progress.train_losses, progress.val_losses, progress.track_tokens_seen)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert "Ep 1 (Step 000000): Train loss 10." in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 4, 5, 13])
def test_stopping_and_resuming_gives_the_same_bits_as_going_on(tmp_path, cut):
    straight = new_run(log_path=tmp_path / "straight.jsonl")
    straight.run()
    assert straight.progress.step == 15  # 5 updates an epoch: the cuts lie inside and between

    paths = {"checkpoint_path": tmp_path / "c.pth", "log_path": tmp_path / "log.jsonl"}
    first = new_run(max_steps=cut, **paths)
    first.run()
    torch.rand(1000), random.random(), np.random.rand()  # another process would have other states
    second = new_run(seed=999, **paths)
    second.resume()
    second.run()
    assert_same_state(straight, second)
    assert (tmp_path / "log.jsonl").read_text() == (tmp_path / "straight.jsonl").read_text()


def test_two_processes_continue_one_another_with_the_same_bits(tmp_path):
    """The first process stops inside an epoch, the second goes on; a third runs straight."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])  # the folder of this test
from test_training import new_run
steps, checkpoint, result, resume = sys.argv[2:]
trainer = new_run(max_steps=int(steps), checkpoint_path=checkpoint)
if resume == "resume":
    trainer.resume()
trainer.run()
torch.save([trainer.model.state_dict(), trainer.optimizer.state_dict(),
            trainer.progress.step_losses, trainer.progress.val_losses], result)
"""
    results = []
    for name, runs in (("straight", ["14"]), ("cut", ["7", "14"])):
        for number, steps in enumerate(runs):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    code,
                    str(Path(__file__).parent),
                    steps,
                    str(tmp_path / f"{name}.pth"),
                    str(tmp_path / f"{name}.result"),
                    "resume" if number else "start",
                ],
                check=True,
                capture_output=True,
            )
        results.append(torch.load(tmp_path / f"{name}.result", weights_only=True))
    (model, optimizer, *losses), (other_model, other_optimizer, *other_losses) = results
    assert losses == other_losses and len(losses[0]) == 14
    assert all(torch.equal(tensor, other_model[name]) for name, tensor in model.items())
    for index, values in optimizer["state"].items():
        for key, value in values.items():
            assert torch.equal(value, other_optimizer["state"][index][key])


def test_resuming_draws_the_same_data_in_the_same_order(tmp_path):
    def watch(trainer):
        seen = []
        update = trainer._update
        trainer._update = lambda batches: (
            seen.extend(x.tolist() for x, _ in batches),
            update(batches),
        )[1]
        return seen

    straight = new_run()
    wanted = watch(straight)
    straight.run()
    first = new_run(max_steps=4, checkpoint_path=tmp_path / "c.pth")
    got = watch(first)
    first.run()
    second = new_run(seed=5, checkpoint_path=tmp_path / "c.pth")
    second.resume()
    rest = watch(second)
    second.run()
    assert got + rest == wanted


@pytest.mark.parametrize("ignored", [0, 5, 15])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(ignored):
    config = CONFIG | {"drop_rate": 0.0}
    torch.manual_seed(1)
    model = GPTModel(config).double()
    x = torch.randint(0, 50257, (6, 9))
    inputs, targets = x[:, :-1], x[:, 1:].clone()
    targets.view(-1)[:ignored] = -100  # so the first rows of 8 teach less, or nothing
    grads = []
    for sizes in ([6], [3, 3], [4, 2], [1, 2, 3]):
        trainer = new_run()
        trainer.model = model
        trainer.max_grad_norm = trainer.scheduler = None
        trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
        loss = trainer._update(batches)
        grads.append((loss, [p.grad.clone() for p in model.parameters()]))
    for loss, gradient in grads[1:]:
        assert math.isclose(loss, grads[0][0], rel_tol=1e-12)
        for a, b in zip(gradient, grads[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)


def test_the_loss_equals_cross_entropy_written_out():
    torch.manual_seed(0)
    model = GPTModel(CONFIG).eval()
    x = torch.randint(0, 50257, (2, 9))
    probas = torch.softmax(model(x[:, :-1]), dim=-1)
    picked = probas[torch.arange(2)[:, None], torch.arange(8), x[:, 1:]]
    wanted = -picked.log().mean()
    torch.testing.assert_close(calc_loss_batch(x[:, :-1], x[:, 1:], model, "cpu"), wanted)


def test_loader_loss_is_nan_without_batches_and_capped_at_the_loaders_length():
    model = GPTModel(CONFIG).eval()
    batch = (torch.randint(0, 50257, (2, 8)), torch.randint(0, 50257, (2, 8)))
    assert math.isnan(calc_loss_loader([], model, "cpu"))
    assert math.isnan(calc_loss_loader([batch], model, "cpu", num_batches=0))
    one = calc_loss_loader([batch], model, "cpu")
    assert calc_loss_loader([batch], model, "cpu", num_batches=99) == one


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was_and_ignores_dropout(training):
    model = GPTModel(CONFIG)
    model.train(training)
    batch = (torch.randint(0, 50257, (2, 8)), torch.randint(0, 50257, (2, 8)))
    first = evaluate_model(model, [batch], [batch], "cpu", eval_iter=1)
    assert model.training is training
    assert first == evaluate_model(model, [batch], [batch], "cpu", eval_iter=1)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_harmed():
    trainer = new_run()
    with torch.no_grad():
        trainer.model.out_head.weight[0, 0] = math.inf
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="the loss became nan at step 0: try a lower"):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("num_updates", [1, 3])
def test_weights_that_the_last_update_has_ruined_are_not_saved_and_the_last_good_ones_stay(
    tmp_path, num_updates
):
    trainer = new_run(checkpoint_path=tmp_path / "c.pth", max_steps=num_updates)
    trainer.save()
    good = (tmp_path / "c.pth").read_bytes()
    ended = []
    trainer.on_epoch_end = lambda: ended.append(True)

    def ruin(step):
        if step == num_updates:
            trainer.optimizer.param_groups[0]["params"][0].data.fill_(1e30)

    trainer.on_step = ruin
    with pytest.raises(FloatingPointError, match="last good checkpoint is kept: .*c.pth"):
        trainer.run()
    assert (tmp_path / "c.pth").read_bytes() == good and not ended


def test_a_run_that_is_longer_than_what_is_asked_for_is_not_taken_up(tmp_path):
    trainer = new_run(checkpoint_path=tmp_path / "c.pth", max_steps=4)
    trainer.run()
    shorter = new_run(checkpoint_path=tmp_path / "c.pth", max_steps=3)
    with pytest.raises(CheckpointError, match="has made 4 updates, more than the 3"):
        shorter.resume()
    same = new_run(checkpoint_path=tmp_path / "c.pth", max_steps=4)
    same.resume()
    assert same.is_finished and same.run() is None


SETTING = st.one_of(st.integers(0, 3), st.floats(0, 1), st.sampled_from(["a", "b"]))


@settings(max_examples=25)
@given(saved=st.dictionaries(st.sampled_from("xyz"), SETTING), data=st.data())
def test_every_setting_that_differs_is_named(saved, data):
    wanted = data.draw(st.dictionaries(st.sampled_from("xyz"), SETTING))
    model = torch.nn.Linear(1, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.pth")
        save_checkpoint(path, model, torch.optim.SGD(model.parameters()), config={}, settings=saved)
        differing = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
        if not differing:
            load_checkpoint(path, model, settings=wanted)
            return
        with pytest.raises(CheckpointError, match="settings differ: ") as error:
            load_checkpoint(path, model, settings=wanted)
        for key in differing:
            assert f"{key} saved {saved.get(key)!r}, wanted {wanted.get(key)!r}" in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_is_acknowledged_at_once_and_a_second_one_acts_as_usual(tmp_path, capsys):
    trainer = new_run(checkpoint_path=tmp_path / "c.pth")
    said = []

    def interrupt_twice(batches):
        signal.raise_signal(signal.SIGINT)
        said.append(capsys.readouterr().err)
        signal.raise_signal(signal.SIGINT)

    trainer._update = interrupt_twice
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert "this update is finished, then a checkpoint is saved. Once more stops at once" in said[0]


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize(
    "option", ["num_epochs", "max_steps", "eval_freq", "accumulate", "checkpoint_freq"]
)
def test_counts_below_one_are_refused(option, count):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got {count}"):
        new_run(**{option: count})


def test_a_run_without_a_length_or_with_a_negative_norm_is_refused():
    with pytest.raises(ValueError, match="give num_epochs or max_steps"):
        new_run(num_epochs=None)
    for norm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_grad_norm must be above 0"):
            new_run(max_grad_norm=norm)


def test_an_update_without_any_target_is_named_and_changes_nothing():
    trainer = new_run()
    ids = torch.zeros(2, 8, dtype=torch.long)
    trainer.train_loader = [(ids, torch.full_like(ids, -100))] * 4
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="step 0: all targets of its batches are ignored"):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_what_no_checkpoint_can_hold_is_refused_before_training(tmp_path):
    for config in ({"a": object()}, {"a": [np.ones(2)]}):
        with pytest.raises(ValueError, match=r"config\['a'\]"):
            new_run(config=config, checkpoint_path=tmp_path / "c.pth")
        new_run(config=config)  # no checkpoint is wanted
    trainer = new_run()
    scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, Rate())
    with pytest.raises(ValueError, match=r"scheduler\['lr_lambdas'\]"):
        new_run(scheduler=scheduler, checkpoint_path=tmp_path / "c.pth")


class Rate:
    """A rate whose own state, which the scheduler's holds, is no plain value."""

    def __init__(self):
        self.device_of = object()

    def __call__(self, epoch):
        return 1.0


def test_numpys_numbers_and_paths_in_a_configuration_do_not_hinder_resuming(tmp_path):
    config = CONFIG | {"lr": np.float64(1e-2), "text": Path("a.txt"), "nothing": math.nan}
    options = {"config": config, "checkpoint_path": tmp_path / "c.pth"}
    first = new_run(max_steps=2, **options)
    first.optimizer.param_groups[0]["lr"] = np.float64(1e-2)
    first.run()
    second = new_run(seed=5, **options)
    second.resume()
    assert second.progress.step == 2


def test_data_that_do_not_fill_a_batch_are_refused():
    trainer = new_run()
    with pytest.raises(ValueError, match="do not fill a single batch"):
        Trainer(
            trainer.model, trainer.optimizer, [], [], "cpu", num_epochs=1, eval_freq=1, eval_iter=1
        )


# --- Checkpoint files ---


@pytest.fixture
def saved(tmp_path) -> Path:
    trainer = new_run(checkpoint_path=tmp_path / "c.pth")
    trainer.max_steps = 3
    trainer.run()
    return tmp_path / "c.pth"


def other_run(path, **changes):
    trainer = new_run(checkpoint_path=path, **changes)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    return trainer, before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": CONFIG | {"drop_rate": 0.2}},
            "config differs: drop_rate saved 0.1, wanted 0.2",
        ),
        ({"vocabulary": {"name": "other"}}, "vocabulary differs"),
        ({"scheduler": None}, "saved with a learning-rate scheduler, unlike this run"),
        ({"accumulate": 1}, "data differs: accumulate saved 2, wanted 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_anything_changes(saved, changes, message):
    trainer, before = other_run(saved, **changes)
    rng = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message):
        trainer.resume()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert trainer.progress.step == 0


@pytest.mark.parametrize(
    ("text", "batch_size", "message"),
    [
        (TEXT, 2, "batches saved 10, wanted 15, batch_size saved 3, wanted 2"),
        (TEXT[: len(TEXT) // 2], 3, "examples saved 30, wanted 1., batches saved 10"),
        (TEXT[: len(TEXT) // 2] + "!", 1, "batch_size saved 3, wanted 1"),
    ],
)
def test_a_run_on_other_data_is_refused_before_anything_changes(saved, text, batch_size, message):
    trainer, before = other_run(saved)
    trainer.train_loader = create_dataloader_v1(text, batch_size, max_length=8, stride=8)
    with pytest.raises(CheckpointError, match=f"data differs: .*{message}"):
        trainer.resume()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_a_checkpoint_without_a_word_about_its_data_or_schedule_is_taken_up(saved):
    content = torch.load(saved, weights_only=True)
    for name in ("data", "scheduler_class"):
        del content[name]
    del content["rng"]["mps"]
    torch.save(content, saved)
    trainer, _ = other_run(saved)
    trainer.resume()
    assert trainer.progress.step == 3


def test_another_kind_of_schedule_is_refused_before_anything_changes(saved):
    trainer, before = other_run(saved)
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=3)
    attributes = dict(trainer.scheduler.__dict__)
    with pytest.raises(CheckpointError, match="scheduler CosineAnnealingLR, this is StepLR"):
        trainer.resume()
    assert trainer.scheduler.__dict__ == attributes
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_a_checkpoint_of_another_optimizer_or_version_is_refused(saved, monkeypatch):
    trainer, _ = other_run(saved)
    with pytest.raises(CheckpointError, match="saved with AdamW, this is SGD"):
        load_checkpoint(saved, trainer.model, torch.optim.SGD(trainer.model.parameters()))
    monkeypatch.setattr(checkpoint_module, "VERSION", 2)
    with pytest.raises(CheckpointError, match="format version 1, this code reads version 2"):
        trainer.resume()


def test_tensors_that_do_not_fit_are_named(saved):
    small = GPTModel(CONFIG | {"n_layers": 1})
    with pytest.raises(CheckpointError, match="the model has no tensor 'trf_blocks.1.att.W_key"):
        load_checkpoint(saved, small)
    wide = GPTModel(CONFIG | {"context_length": 9})
    with pytest.raises(
        CheckpointError, match=r"'pos_emb.weight' has shape \(8, 8\), the model wants \(9, 8\)"
    ):
        load_checkpoint(saved, wide)
    deep = GPTModel(CONFIG | {"n_layers": 3})
    with pytest.raises(CheckpointError, match="'trf_blocks.2.att.mask' is missing"):
        load_checkpoint(saved, deep)


def test_a_flipped_bit_anywhere_in_the_contents_is_caught(saved):
    content = bytearray(saved.read_bytes())
    rng = random.Random(0)
    with zipfile.ZipFile(saved) as archive:
        records = [
            (info.header_offset + 30 + len(info.filename.encode()) + 64, info.file_size)
            for info in archive.infolist()
            if info.file_size > 1000
        ]
    for offset, size in rng.choices(records, k=20):
        position = offset + rng.randrange(size - 200)
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged: the checksum of|not a readable"):
            load_checkpoint(saved, GPTModel(CONFIG))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 and then nothing"])
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pth", GPTModel(CONFIG))


def test_a_truncated_checkpoint_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        load_checkpoint(saved, GPTModel(CONFIG))


def test_model_weights_alone_are_no_training_checkpoint(tmp_path):
    torch.save(GPTModel(CONFIG).state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        load_checkpoint(tmp_path / "model.pth", GPTModel(CONFIG))


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_checkpoint_that_would_run_code_is_refused_and_the_code_does_not_run(tmp_path):
    torch.save({"format": Malicious(tmp_path / "marker")}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "c.pth", GPTModel(CONFIG))
    assert not (tmp_path / "marker").exists()


def test_a_missing_checkpoint_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "c.pth", GPTModel(CONFIG))


def test_a_save_that_fails_half_way_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    old = saved.read_bytes()

    def fail(content, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    trainer, _ = other_run(saved)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == ["c.pth"]


SAVE_FOR_EVER = """
import os, sys, torch
from llms_from_scratch.training.checkpoint import save_checkpoint

torch.set_num_threads(1)
model = torch.nn.Linear(400, 400)  # 2 MB with the optimizer's state
optimizer = torch.optim.AdamW(model.parameters())
model(torch.rand(1, 400)).sum().backward()
optimizer.step()

def save_for_ever(path):
    number = 0
    while True:
        torch.nn.init.constant_(model.weight, number)
        save_checkpoint(path, model, optimizer, config={}, progress={"number": number})
        if number == 0:
            os.write(1, f"{os.getpid()}\\n".encode())  # in one piece, however Python buffers
        number += 1

for line in sys.stdin:  # a new process for each line, without a new import of PyTorch
    pid = os.fork()
    if pid == 0:
        save_for_ever(sys.argv[1])
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        sys.exit("saving failed")  # closes the pipe: whoever waits for the next line goes on
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_after_50_kills_while_saving_the_newest_checkpoint_loads_every_time(tmp_path):
    path, rng = tmp_path / "c.pth", random.Random(0)
    model = torch.nn.Linear(400, 400)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    launcher = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, path], **pipes)
    strays = 0
    for _ in range(50):
        launcher.stdin.write("go\n")
        launcher.stdin.flush()
        pid = int(launcher.stdout.readline())  # comes after the first checkpoint
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        progress = load_checkpoint(path, model, torch.optim.AdamW(model.parameters()))
        assert torch.all(model.weight == progress["number"])
        strays += len(list(tmp_path.iterdir())) > 1
    launcher.stdin.close()
    launcher.wait(timeout=60)
    assert strays > 5  # else the kills missed the moments of saving and prove nothing
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), config={})
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]  # strays are tidied up


def test_vocabularies_are_told_apart_by_their_tokens():
    gpt2 = get_tokenizer("gpt2")
    description = describe_vocabulary(gpt2)
    assert (description["name"], description["size"]) == ("gpt2", 50257)
    changed = type(gpt2)(
        "gpt2",
        pat_str=gpt2._pat_str,
        special_tokens={"<|other|>": 50256},
        mergeable_ranks=gpt2._mergeable_ranks,
    )
    assert describe_vocabulary(changed)["sha256"] != description["sha256"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_an_update_with_a_checkpoint(tmp_path, number):
    trainer = new_run(checkpoint_path=tmp_path / "c.pth", log_path=tmp_path / "log.jsonl")
    update, count = trainer._update, itertools.count(1)

    def update_and_interrupt(batches):
        if next(count) == 4:
            signal.raise_signal(number)
        return update(batches)

    trainer._update = update_and_interrupt
    assert trainer.run() == number
    assert trainer.progress.step == 4
    resumed = new_run(checkpoint_path=tmp_path / "c.pth", log_path=tmp_path / "log.jsonl")
    resumed.resume()
    assert resumed.progress.step == 4
    resumed.run()
    straight = new_run()
    straight.run()
    assert_same_state(straight, resumed)


def test_the_log_has_one_line_per_update_that_a_program_can_read(tmp_path):
    trainer = new_run(log_path=tmp_path / "log.jsonl")
    trainer.run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").open(encoding="utf-8")]
    assert [record["step"] for record in records] == list(range(1, trainer.progress.step + 1))
    assert [record["loss"] for record in records] == trainer.progress.step_losses
    assert [r["val_loss"] for r in records if "val_loss" in r] == trainer.progress.val_losses
