"""What one looks at stays as it was: modes, data under way, random numbers, signals, variables."""

import copy
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from llms_from_scratch import ch06
from llms_from_scratch.appendix_d import train_model
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch05 import (
    calc_loss_loader,
    evaluate_model,
    evaluating,
    generate_and_print_sample,
    take_batches,
    train_model_simple,
)
from llms_from_scratch.ch07 import calc_mean_token_loss
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training import distributed
from llms_from_scratch.training.checkpoint import get_rng_state, set_rng_state
from llms_from_scratch.training.loop import Trainer, _delayed_signals

CONFIG = {
    "vocab_size": 50257,
    "context_length": 8,
    "emb_dim": 4,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
NUM_BATCHES = 7


@pytest.fixture
def model():
    torch.manual_seed(1)
    return GPTModel(CONFIG)


def loader_of(labels=False, persistent=True):
    """Seven shuffled batches of two rows; with persistent workers, from one worker."""
    rows = torch.arange(2 * NUM_BATCHES * 9).view(-1, 9)
    pairs = [(row[:-1], torch.tensor(i % 2) if labels else row[1:]) for i, row in enumerate(rows)]
    return DataLoader(
        pairs,
        batch_size=2,
        shuffle=True,
        num_workers=int(persistent),
        persistent_workers=persistent,
    )


class Counted(torch.optim.SGD):
    steps = 0

    def step(self, *arguments, **options):
        self.steps += 1
        return super().step(*arguments, **options)


def train_book(model, optimizer, loader):
    losses, _, _ = train_model_simple(
        model, loader, loader, optimizer, "cpu", 2, 3, 2, "Hello", get_tokenizer()
    )
    return losses


def train_appendix_d(model, optimizer, loader):
    return train_model(
        model, loader, loader, optimizer, "cpu", 2, 3, 2, "Hello", get_tokenizer(), 1
    )[0]


def train_classifier(model, optimizer, loader):
    return ch06.train_classifier_simple(model, loader, loader, optimizer, "cpu", 2, 3, 2)[0]


def train_in_script(model, optimizer, loader):
    trainer = Trainer(
        model, optimizer, loader, loader, "cpu", num_epochs=2, eval_freq=3, eval_iter=2
    )
    trainer.run()
    assert (trainer.progress.epoch, trainer.progress.batch) == (2, 0)
    return trainer.progress.train_losses


# --- the data under way ---


@pytest.mark.parametrize("train", [train_book, train_appendix_d, train_classifier, train_in_script])
def test_with_persistent_workers_training_makes_its_updates_and_the_same_ones(train):
    results = []
    for persistent in (True, False):
        torch.manual_seed(2)
        model = GPTModel(CONFIG)
        if train is train_classifier:
            ch06.replace_output_head(model)
        optimizer = Counted(model.parameters(), lr=0.01)
        losses = train(model, optimizer, loader_of(train is train_classifier, persistent))
        assert optimizer.steps == 2 * NUM_BATCHES
        results.append((losses, model.state_dict()))
    (losses, weights), (other_losses, other_weights) = results
    assert len(losses) == 5 and losses[:3] == other_losses[:3]
    if train is train_in_script:  # PyTorch itself draws other numbers from the second epoch on
        assert losses == other_losses
        assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("cut", [3, 9])
def test_with_persistent_workers_too_a_run_is_taken_up_exactly(tmp_path, cut):
    runs = []
    for number, steps in enumerate((2 * NUM_BATCHES, cut, 2 * NUM_BATCHES)):
        torch.manual_seed(0 if number < 2 else 9)
        model, loader = GPTModel(CONFIG), loader_of()
        trainer = Trainer(
            model,
            torch.optim.AdamW(model.parameters(), lr=0.01),
            loader,
            loader,
            "cpu",
            max_steps=steps,
            eval_freq=4,
            eval_iter=2,
            checkpoint_path=tmp_path / "c.pth" if number else None,
        )
        if number == 2:
            trainer.resume()
        runs.append(trainer)
        trainer.run()
    assert runs[0].progress.step_losses == runs[2].progress.step_losses
    assert len(runs[2].progress.step_losses) == 2 * NUM_BATCHES


@pytest.mark.parametrize(
    "measure",
    [
        lambda loader, model: calc_loss_loader(loader, model, "cpu", 2),
        lambda loader, model: calc_mean_token_loss(loader, model, "cpu"),
        lambda loader, model: list(take_batches(loader, 3)),
    ],
)
def test_measuring_in_the_middle_of_a_loop_leaves_the_loop_alone(model, measure):
    loader = loader_of()
    seen = []
    for inputs, _ in loader:
        seen += inputs[:, 0].tolist()
        measure(loader, model)
        assert len(seen) <= 2 * NUM_BATCHES
    assert sorted(seen) == list(range(0, 2 * NUM_BATCHES * 9, 9))


# --- modes and gradients ---


def modes_of(model):
    return [module.training for module in model.modules()]


class Broken(Exception):
    pass


def fail(*_):
    raise Broken


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_of_a_model_keeps_its_mode_also_after_an_error(model, fails):
    model.train()
    model.trf_blocks[0].eval()  # a frozen part, without dropout
    model.trf_blocks[1].att.eval()
    before = modes_of(model)
    loader = loader_of(persistent=False)
    if fails:
        model.out_head.register_forward_pre_hook(fail)
    for look in (
        lambda: evaluate_model(model, loader, loader, "cpu", 1),
        lambda: generate_and_print_sample(model, get_tokenizer(), "cpu", "Hello"),
        lambda: calc_mean_token_loss(loader, model, "cpu"),
        lambda: ch06.evaluate_model(
            model, loader_of(True, False), loader_of(True, False), "cpu", 1
        ),
        lambda: ch06.calc_accuracy_loader(loader_of(True, False), model, "cpu", 1),
        lambda: ch06.classify_review("Hello", model, get_tokenizer(), "cpu", 8),
    ):
        if fails:
            with pytest.raises(Broken):
                look()
        else:
            look()
        assert modes_of(model) == before
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrapped_models_get_their_modes_back_too(model, wrap):
    model.trf_blocks[0].eval()
    before = modes_of(model)
    wrapped = wrap(model)
    with evaluating(wrapped):
        assert not any(modes_of(wrapped))
    assert modes_of(model) == before and wrapped.training


# --- random numbers ---


def test_the_random_state_of_apples_gpu_is_saved_and_restored_where_there_is_one(monkeypatch):
    states = [torch.tensor([5])]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    saved = get_rng_state()
    states.append(torch.tensor([6]))
    set_rng_state(saved)
    assert states[-1].item() == 5
    set_rng_state({key: value for key, value in saved.items() if key != "mps"})  # an older file
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    set_rng_state(saved)  # another machine
    assert len(states) == 3 and get_rng_state()["mps"] is None


def test_data_that_break_while_an_epoch_is_taken_up_leave_the_random_state(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = loader_of(persistent=False)
    trainer = Trainer(
        model, optimizer, loader, loader, "cpu", num_epochs=1, eval_freq=9, eval_iter=1
    )
    trainer.progress.batch, trainer.progress.epoch_rng = 3, get_rng_state()
    loader.collate_fn = fail
    torch.rand(100)
    before = torch.get_rng_state()
    with pytest.raises(Broken):
        trainer.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_that_gives_fewer_batches_than_it_says_is_an_error_and_no_endless_loop(model):
    class Short(list):
        def __len__(self):
            return NUM_BATCHES

    loader = Short(list(loader_of(persistent=False))[:3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(
        model, optimizer, loader, loader, "cpu", num_epochs=2, eval_freq=99, eval_iter=1
    )
    with pytest.raises(ValueError, match="have 7 batches .* but 3 were used"):
        trainer.run()


# --- signals and variables ---


def test_signal_handlers_are_put_back_also_those_that_python_does_not_know(monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with _delayed_signals():
        assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
    assert {n: signal.getsignal(n) for n in before} == before
    known = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGTERM else known(n))
    with _delayed_signals():
        assert known(signal.SIGTERM) is before[signal.SIGTERM]
    assert known(signal.SIGINT) is before[signal.SIGINT]


def test_launching_processes_gives_them_variables_and_leaves_ours_alone(monkeypatch):
    seen = {}

    def start(*arguments, **options):
        seen.update(os.environ)
        return SimpleNamespace(join=lambda **options: True, processes=[])

    monkeypatch.setattr(distributed.mp, "spawn", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    before = dict(os.environ)
    distributed.launch(print, 1)
    assert seen["OMP_NUM_THREADS"] == "3" and int(seen["MASTER_PORT"]) > 1023
    assert dict(os.environ) == before


# --- numbers that no training survives ---


@pytest.mark.parametrize("clipping", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_harmed(
    model, tmp_path, clipping
):
    loader = loader_of(persistent=False)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e3),
        loader,
        loader,
        "cpu",
        num_epochs=9,
        eval_freq=99,
        eval_iter=1,
        max_grad_norm=clipping,
        checkpoint_path=tmp_path / "c.pth",
        checkpoint_freq=1,
    )
    model.out_head.weight.register_hook(
        lambda gradient: gradient * (math.inf if trainer.progress.step == 2 else 1)
    )
    kept = []
    trainer.on_step = lambda step: kept.append(copy.deepcopy(model.state_dict()))
    with pytest.raises(FloatingPointError, match="norm of the gradient became (nan|inf) at step 2"):
        trainer.run()
    assert len(kept) == 2
    saved = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[-1][name]) and torch.equal(tensor, saved[name])
        assert tensor.isfinite().all()


def test_a_learning_rate_that_is_far_too_high_never_saves_weights_that_are_not_finite(
    model, tmp_path
):
    loader = loader_of(persistent=False)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e3),
        loader,
        loader,
        "cpu",
        num_epochs=20,
        eval_freq=999,
        eval_iter=1,
        checkpoint_path=tmp_path / "c.pth",
        checkpoint_freq=1,
    )
    with pytest.raises(FloatingPointError, match="try a lower learning rate"):
        trainer.run()
    saved = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in saved.values())
