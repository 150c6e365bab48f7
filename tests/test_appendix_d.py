"""Appendix D: the schedule is PyTorch's, and clipping does what it says."""

import math

import pytest
import torch

from llms_from_scratch import appendix_d
from llms_from_scratch.appendix_d import find_highest_gradient, learning_rate, train_model
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch05 import train_model_simple
from llms_from_scratch.tokenizer import get_tokenizer

CONFIG = {
    "vocab_size": 50257,
    "context_length": 8,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TEXT = "A quick brown fox jumps over the lazy dog; the dog, being lazy, lets it pass. " * 8


def schedule(total, warmup, initial=1e-4, peak=1e-2, low=1e-5):
    return [learning_rate(step, total, warmup, initial, peak, low) for step in range(total)]


@pytest.mark.parametrize(("total", "warmup"), [(135, 27), (10, 1), (50, 49)])
def test_the_schedule_equals_pytorchs_schedulers_one_after_the_other(total, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1e-4 / 1e-2, 1.0, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=1e-5),
        ],
        milestones=[warmup],
    )
    wanted = []
    for _ in range(total):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for ours, theirs in zip(schedule(total, warmup), wanted, strict=True):
        assert math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-9)


def test_warmup_of_zero_and_longer_than_training():
    assert schedule(10, 0)[0] == 1e-2
    unfinished = schedule(10, 40)
    assert unfinished == sorted(unfinished) and unfinished[-1] < 1e-2
    assert all(1e-5 <= rate <= 1e-2 for rate in schedule(10, 10) + schedule(1, 0))


def run(train=train_model, text=TEXT, lr=1e-3, **options):
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    loader = create_dataloader_v1(text, batch_size=2, max_length=8, stride=8)
    settings = {"eval_freq": 2, "eval_iter": 1, "start_context": "A", "tokenizer": get_tokenizer()}
    return model, train(model, loader, loader, optimizer, "cpu", **settings, **options)


def test_with_a_constant_rate_and_no_clipping_it_is_the_loop_of_chapter_5():
    model, results = run(n_epochs=2, warmup_steps=0, min_lr=1e-3, max_norm=None)
    simple, simple_results = run(train_model_simple, num_epochs=2)
    assert results[:3] == simple_results
    assert all(
        torch.equal(tensor, simple.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


def test_rates_are_tracked_for_every_update_and_follow_the_schedule():
    _, (losses, _, tokens, rates) = run(n_epochs=3, warmup_steps=4, initial_lr=1e-5, min_lr=1e-6)
    assert rates == schedule(len(rates), 4, 1e-5, 1e-3, 1e-6)
    assert len(losses) == len(tokens) == math.ceil(len(rates) / 2)


@pytest.mark.parametrize(("original", "first"), [(False, 3), (True, 4)])
def test_gradients_are_clipped_from_the_end_of_the_warmup_on(monkeypatch, original, first):
    steps, clipped = [], []
    clip = torch.nn.utils.clip_grad_norm_

    def watch(parameters, max_norm):
        clipped.append(len(steps))
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch)
    monkeypatch.setattr(appendix_d, "ORIG_BOOK_VERSION", original)
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), step(self, *args))[1]
    )
    run(n_epochs=1, warmup_steps=3)
    assert clipped == list(range(first, len(steps)))


def test_the_highest_gradient_is_found_and_absent_before_backward():
    model = torch.nn.Linear(2, 2)
    assert find_highest_gradient(model) is None
    model.weight.grad = torch.tensor([[1.0, -9.0], [3.0, 2.0]])
    assert find_highest_gradient(model) == 3.0


def test_rates_of_parameter_groups_keep_their_proportions(monkeypatch):
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    head = list(model.out_head.parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith("out_head")]
    frozen = torch.nn.Parameter(torch.ones(1))
    groups = [(body, 1e-3), (head, 1e-2), ([frozen], 0.0)]
    optimizer = torch.optim.SGD([{"params": params, "lr": lr} for params, lr in groups])
    loader = create_dataloader_v1(TEXT, 2, 8, 8)
    seen = []
    step = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda: (seen.append([g["lr"] for g in optimizer.param_groups]), step())
    )
    tokenizer = get_tokenizer()
    *_, rates = train_model(model, loader, loader, optimizer, "cpu", 1, 99, 1, "A", tokenizer, 3)
    assert rates == [rate for rate, _, _ in seen]
    for first, second, third in seen:
        assert math.isclose(second, 10 * first) and third == 0.0


@pytest.mark.parametrize(
    "options", [{"n_epochs": 0}, {"n_epochs": 1, "warmup_steps": -1}, {"n_epochs": 1, "lr": 0.0}]
)
def test_training_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="at least one update and no negative warmup"):
        run(**({"warmup_steps": 0} | options))
