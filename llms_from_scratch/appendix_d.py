"""Appendix D: learning-rate warmup, cosine decay and gradient clipping in the training loop."""

import math
from collections.abc import Iterable

import torch
import torch.nn as nn

from llms_from_scratch.ch05 import (
    calc_loss_batch,
    evaluate_model,
    generate_and_print_sample,
    print_losses,
)

ORIG_BOOK_VERSION = False  # True: clip only after the warmup's last step, as the first printing did


def learning_rate(
    step: int,
    total_steps: int,
    warmup_steps: int,
    initial_lr: float,
    peak_lr: float,
    min_lr: float,
) -> float:
    """The learning rate of update number ``step``, from 0 (sections D.1 and D.2).

    It rises in a straight line from ``initial_lr`` towards ``peak_lr`` during ``warmup_steps``
    updates, and then falls to ``min_lr`` along half a cosine wave. Without warmup it starts at the
    peak; a warmup that is longer than training is simply not finished.
    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    >>> [round(learning_rate(step, 6, 2, 0.0, 1.0, 0.2), 3) for step in range(6)]
    [0.0, 0.5, 1.0, 0.883, 0.6, 0.317]
    """
    if step < warmup_steps:
        return initial_lr + (peak_lr - initial_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # from 0 to 1
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def find_highest_gradient(model: nn.Module) -> float | None:
    """The largest positive entry of all gradients; ``None`` if there are none (section D.3)."""
    highest = [p.grad.max() for p in model.parameters() if p.grad is not None]
    return torch.stack(highest).max().item() if highest else None


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, shares: list[float]) -> None:
    """Give each parameter group its share of the rate ``lr``: 1 for all, in most cases."""
    for param_group, share in zip(optimizer.param_groups, shares, strict=True):
        param_group["lr"] = lr * share


def update_and_clip(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    device: torch.device | str,
    max_norm: float | None = 1.0,
) -> None:
    """The update of chapter 5, with a limit to the norm of the gradient (section D.4).

    ``max_norm=None`` sets no limit.
    """
    optimizer.zero_grad()
    loss = calc_loss_batch(input_batch, target_batch, model, device)
    loss.backward()
    if max_norm is not None:  # this is new
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def train_model(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    max_norm: float | None = 1.0,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """``train_model_simple`` of chapter 5 with a schedule and clipped gradients (section D.4).

    The peak learning rate is the optimizer's own; if its parameter groups have several, their
    rates rise and fall in proportion. After the warmup, gradients are scaled down so that their
    norm is at most ``max_norm`` (``None``: never). Returns the training losses, the validation
    losses, the tokens seen at each of them, and the first group's learning rate at every update.
    Raises ``ValueError`` if there is nothing to train on, or the first group's rate is 0.
    """
    total_steps = len(train_loader) * n_epochs
    peak_lr = optimizer.param_groups[0]["lr"]
    if total_steps < 1 or warmup_steps < 0 or peak_lr <= 0:
        raise ValueError(
            "at least one update and no negative warmup are needed, and a rate above 0, got "
            f"{len(train_loader)} batches, {n_epochs=}, {warmup_steps=}, {peak_lr=}"
        )
    shares = [param_group["lr"] / peak_lr for param_group in optimizer.param_groups]
    train_losses, val_losses, track_tokens_seen, track_lrs = [], [], [], []
    tokens_seen, global_step = 0, -1
    first_clipped = warmup_steps + 1 if ORIG_BOOK_VERSION else warmup_steps
    for epoch in range(n_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            global_step += 1
            lr = learning_rate(global_step, total_steps, warmup_steps, initial_lr, peak_lr, min_lr)
            set_learning_rate(optimizer, lr, shares)
            track_lrs.append(lr)
            limit = max_norm if global_step >= first_clipped else None
            update_and_clip(model, optimizer, input_batch, target_batch, device, limit)
            tokens_seen += input_batch.numel()
            if global_step % eval_freq == 0:
                losses = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                print_losses(epoch, global_step, *losses, unit="Iter")
                train_losses.append(losses[0])
                val_losses.append(losses[1])
                track_tokens_seen.append(tokens_seen)
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen, track_lrs
