"""Chapter 5: pretraining a GPT, and what it writes.

Shapes: b = batch size, num_tokens = sequence length, vocab_size = classes.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn as nn

from llms_from_scratch.ch04 import check_generation, generate_text_simple
from llms_from_scratch.generate import pick_next_token, softmax_with_temperature
from llms_from_scratch.weights.gpt2 import (
    assign,
    load_gpt2_params_from_tf_ckpt,
    load_weights_into_gpt,
)
from llms_from_scratch.weights.pretrained import (
    bundled_in_openai_layout,
    choose_pretrained,
    download_and_load_gpt2,
    load_pretrained,
)

# Section 5.5 has more code than a chapter's module should; it is in modules of its own
__all__ = [
    "assign",
    "calc_loss_batch",
    "calc_loss_loader",
    "choose_pretrained",
    "bundled_in_openai_layout",
    "download_and_load_gpt2",
    "evaluate_model",
    "evaluating",
    "generate",
    "generate_and_print_sample",
    "generate_stream",
    "generate_text_simple",
    "load_gpt2_params_from_tf_ckpt",
    "load_pretrained",
    "load_weights_into_gpt",
    "pick_next_token",
    "plot_losses",
    "softmax_with_temperature",
    "take_batches",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_model_simple",
]


def text_to_token_ids(text: str, tokenizer) -> torch.Tensor:
    """Encode a text as a batch of one row: (1, num_tokens)."""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded, dtype=torch.long).unsqueeze(0)  # (1, num_tokens)


def token_ids_to_text(token_ids: torch.Tensor, tokenizer) -> str:
    """Decode a batch of one row, (1, num_tokens), or a single row, (num_tokens,)."""
    return tokenizer.decode(token_ids.flatten().tolist())


def calc_loss_batch(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a batch (section 5.1.2).

    Inputs and targets are token ids of shape (b, num_tokens); the result has no dimensions.
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, num_tokens, vocab_size)
    # Each token of each row is one classification over the vocabulary
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())


def take_batches(data_loader: Iterable, num_batches: int | None = None) -> Iterator:
    """The first ``num_batches`` batches of a loader, or all; a loop over the loader goes on.

    A loader with ``persistent_workers`` has a single iterator, which each loop starts again. So
    that measuring does not send training back to the first batch, a copy is read.
    """
    if getattr(data_loader, "persistent_workers", False):
        data_loader = copy.copy(data_loader)
        data_loader._iterator = None  # the copy makes an iterator, with workers, of its own
    return islice(data_loader, num_batches)


def calc_loss_loader(
    data_loader: Iterable,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Mean loss over the first ``num_batches`` batches of a loader, or over all (section 5.1.3).

    Each batch counts the same, as in the book, also a last one with fewer rows or targets. The
    result is NaN if there is no batch.
    """
    losses = [
        calc_loss_batch(input_batch, target_batch, model, device).item()
        for input_batch, target_batch in take_batches(data_loader, num_batches)
    ]
    return sum(losses) / len(losses) if losses else math.nan


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for a while; then each part's mode is what it was before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def evaluate_model(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    device: torch.device | str,
    eval_iter: int | None,
) -> tuple[float, float]:
    """Training and validation loss over ``eval_iter`` batches each, without dropout (section 5.2).

    Leaves the model in the mode, training or evaluation, in which it was.
    """
    with evaluating(model):
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    return train_loss, val_loss


def generate_and_print_sample(
    model: nn.Module, tokenizer, device: torch.device | str, start_context: str
) -> None:
    """Print 50 greedily chosen tokens on one line, to see what the model has learned so far."""
    context_size = model.cfg["context_length"]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    with evaluating(model):
        token_ids = generate_text_simple(
            model=model, idx=encoded, max_new_tokens=50, context_size=context_size
        )
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))


def update_weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    device: torch.device | str,
) -> None:
    """One update, with the four steps that all training is made of (section 5.2)."""
    optimizer.zero_grad()  # 1. forget the gradients of the batch before
    loss = calc_loss_batch(input_batch, target_batch, model, device)  # 2. how wrong is it?
    loss.backward()  # 3. the gradient of the loss for each weight
    optimizer.step()  # 4. move each weight against its gradient


def print_losses(
    epoch: int, step: int, train_loss: float, val_loss: float, unit: str = "Step"
) -> None:
    """One line of progress; epochs are counted from 1, steps from 0."""
    losses = f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
    print(f"Ep {epoch + 1} ({unit} {step:06d}): {losses}")


def check_has_batches(data_loader: Iterable) -> None:
    """Raise ``ValueError`` for a loader without a batch, if it can be seen before it is read."""
    if hasattr(data_loader, "__len__") and len(data_loader) == 0:
        raise ValueError("the training data have no batch: use more text or a smaller batch")


def train_model_simple(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer,
) -> tuple[list[float], list[float], list[int]]:
    """Train a GPT (section 5.2). Returns training losses, validation losses, and tokens seen."""
    check_has_batches(train_loader)
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            update_weights(model, optimizer, input_batch, target_batch, device)
            tokens_seen += input_batch.numel()
            global_step += 1
            if global_step % eval_freq == 0:
                losses = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                print_losses(epoch, global_step, *losses)
                train_losses.append(losses[0])
                val_losses.append(losses[1])
                track_tokens_seen.append(tokens_seen)
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def plot_losses(
    epochs_seen,
    tokens_seen,
    train_losses,
    val_losses,
    save_to: Iterable[str | Path] = ("loss-plot.pdf",),
    label: str = "loss",
    seen: str = "Tokens seen",
) -> None:
    """Plot both losses against epochs (below) and tokens (above), and save the figure."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    fig, ax = plt.subplots(figsize=(5, 3))
    ax.plot(epochs_seen, train_losses, label=f"Training {label}")
    ax.plot(epochs_seen, val_losses, linestyle="-.", label=f"Validation {label}")
    ax.set(xlabel="Epochs", ylabel=label.capitalize())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()

    tokens_axis = ax.twiny()  # a second x-axis that shares the y-axis
    tokens_axis.plot(tokens_seen, train_losses, alpha=0)  # invisible, aligns the ticks
    tokens_axis.set_xlabel(seen)

    fig.tight_layout()
    for path in save_to:
        fig.savefig(path)


def generate_stream(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each row, (b, 1), as soon as it is known; see ``generate``."""
    check_generation(idx, max_new_tokens, context_size)
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1, :]  # (b, vocab_size)
        idx_next = pick_next_token(logits, temperature, top_k, top_p, generator)
        if eos_id is not None:
            finished |= idx_next == eos_id
            if finished.all():
                return
            idx_next = idx_next.masked_fill(finished, eos_id)
        idx = torch.cat((idx, idx_next), dim=1)
        yield idx_next


def generate(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Append up to ``max_new_tokens`` tokens to each row of ``idx``, (b, num_tokens).

    Section 5.3.3. ``pick_next_token`` explains temperature, top-k and top-p; ``generator`` makes
    the random draws repeatable. A row ends at ``eos_id``; while others go on, it is filled up with
    ``eos_id``. When all rows have ended, so does generation; their ends are not appended.
    """
    new_tokens = generate_stream(
        model, idx, max_new_tokens, context_size, temperature, top_k, eos_id, top_p, generator
    )
    return torch.cat([idx, *new_tokens], dim=1)
