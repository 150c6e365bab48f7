"""Bonus of chapter 7: direct preference optimization (DPO), learning which answer is better.

A pair is an entry of chapter 7 with two more texts, "chosen" and "rejected". The policy is the
model that is trained; the reference is what it was before, and keeps it from straying.
Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model" (2023).

Shapes: b = pairs in a batch, num_tokens = length of all its rows, vocab_size = classes.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from llms_from_scratch.appendix_e import LinearWithLoRA, check_not_merged
from llms_from_scratch.ch05 import evaluating, generate_and_print_sample, take_batches
from llms_from_scratch.ch07 import PAD_TOKEN_ID, find_prompt_style
from llms_from_scratch.weights.chat_formats import TurnFormat

BLANK_LINE = 2  # tokens of GPT-2 between a prompt in Alpaca's style and what follows
MEASURES = ("loss", "chosen_reward", "rejected_reward")

# --- Pairs


class PreferenceDataset(Dataset):
    """Pairs as token ids; an item has the lists ``prompt``, ``chosen`` and ``rejected``.

    The last two begin with the prompt. In a style of chapter 7 the prompt ends before the line
    "### Response:", as in the book; with the chat format of a model (``Pretrained.chat``) it ends
    where the answer begins. ``end_id`` is added to both answers if it is given, so that where to
    stop is learned too. ``reference`` holds what ``cache_reference`` computes.
    """

    def __init__(self, data, tokenizer, prompt_style="alpaca", end_id: int | None = None):
        self.data = data
        self.encoded_texts = [encode_pair(e, tokenizer, prompt_style, end_id) for e in data]
        self.reference: list[dict] | None = None

    def __getitem__(self, index):
        return self.encoded_texts[index] | (self.reference[index] if self.reference else {})

    def __len__(self):
        return len(self.data)


def encode_pair(
    entry: dict, tokenizer, prompt_style: str | TurnFormat = "alpaca", end_id: int | None = None
) -> dict[str, list[int]]:
    """A pair as an item of ``PreferenceDataset``."""
    end = [] if end_id is None else [end_id]
    names = ("chosen", "rejected")
    if isinstance(prompt_style, TurnFormat):
        prompt = prompt_style.encode_instruction(entry["instruction"], entry["input"])
        answers = [prompt + tokenizer.encode_ordinary(entry[name]) + end for name in names]
    else:
        style = find_prompt_style(prompt_style)
        text = style.format_input(entry)
        prompt = tokenizer.encode_ordinary(text)
        texts = (text + style.response_header + entry[name] for name in names)
        answers = [tokenizer.encode_ordinary(text) + end for text in texts]
    return {"prompt": prompt} | dict(zip(names, answers, strict=True))


def custom_collate_fn(
    batch,
    pad_token_id=PAD_TOKEN_ID,
    allowed_max_length=None,
    mask_prompt_tokens=True,
    device="cpu",
    separator=BLANK_LINE,
):
    """A batch of pairs: ``prompt``, a list of ids, and four tensors (b, num_tokens).

    ``chosen`` and ``rejected`` are the ids, padded to one token more than the longest of them all.
    ``chosen_mask`` and ``rejected_mask`` are True for the tokens that count: no padding, and unless
    ``mask_prompt_tokens`` is False no prompt, nor the ``separator`` tokens after it (0 for a chat
    format). ``allowed_max_length`` cuts the tensors at their end.
    """
    longest = max(len(item[name]) for item in batch for name in ("chosen", "rejected"))
    collated = {"prompt": [torch.tensor(item["prompt"], device=device) for item in batch]}
    for name in ("chosen", "rejected"):
        rows = torch.full((len(batch), longest + 1), pad_token_id)
        mask = torch.zeros(len(batch), longest + 1, dtype=torch.bool)
        for i, item in enumerate(batch):
            start = len(item["prompt"]) + separator if mask_prompt_tokens else 0
            rows[i, : len(item[name])] = torch.tensor(item[name])
            mask[i, start : len(item[name])] = True
        collated[name] = rows[:, :allowed_max_length].to(device)
        collated[f"{name}_mask"] = mask[:, :allowed_max_length].to(device)
    names = ("prompt", "chosen", "rejected", "rejected_mask", "chosen_mask")
    cached = [name for name in batch[0] if name.startswith("reference_")]
    ordered = {name: collated[name] for name in names}
    return ordered | {n: torch.tensor([item[n] for item in batch], device=device) for n in cached}


def decode_tokens_from_batch(token_ids: torch.Tensor, tokenizer) -> str:
    """The text of one row of ids."""
    return tokenizer.decode(token_ids.flatten().tolist())


# --- The loss


def compute_logprobs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    selection_mask: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """How probable a model finds each row: the mean log-probability of its tokens, (b,).

    ``logits`` (b, num_tokens, vocab_size) at one position are about the token of ``labels``
    (b, num_tokens) at the next one. ``selection_mask`` says which labels count, by default all but
    the first. The paper's formula has the sum in place of the mean: ``reduction="sum"``. A row of
    which no token counts has 0.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    labels, logits = labels[:, 1:], logits[:, :-1]
    log_probs = F.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # (b, num_tokens - 1)
    mask = torch.ones_like(chosen) if selection_mask is None else selection_mask[:, 1:].to(chosen)
    total = (chosen * mask).sum(-1)  # (b,)
    return total if reduction == "sum" else total / mask.sum(-1).clamp(min=1)


def compute_dpo_loss(
    model_chosen_logprobs: torch.Tensor,
    model_rejected_logprobs: torch.Tensor,
    reference_chosen_logprobs: torch.Tensor,
    reference_rejected_logprobs: torch.Tensor,
    beta: float = 0.1,
    kind: str = "dpo",
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and the rewards of the chosen and the rejected answers: means over the batch.

    The arguments are log-probabilities (b,). A reward is how much more probable the policy finds an
    answer than the reference does; it is not multiplied by ``beta``, and has no gradient. The
    margin is the difference of the two. The larger ``beta``, the smaller the margin that satisfies
    the loss, and the closer the policy stays to its reference.

    ``kind="dpo"`` is ``-logsigmoid(beta * margin)``. ``label_smoothing`` is the share of pairs that
    may be the wrong way round ("conservative DPO", Mitchell 2023). ``kind="ipo"`` is
    ``(margin - 1 / (2 * beta)) ** 2``, which does not ask for ever larger margins (Azar et al., "A
    General Theoretical Paradigm to Understand Learning from Human Preferences", 2023).

    >>> zero = torch.zeros(3)
    >>> compute_dpo_loss(zero, zero, zero, zero)[0]
    tensor(0.6931)
    """
    check_choice("kind of loss", kind, ("dpo", "ipo"))
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be from 0 to below 0.5, got {label_smoothing}")
    if kind == "ipo" and label_smoothing:
        raise ValueError("label smoothing belongs to the loss 'dpo'; leave it at 0 for 'ipo'")
    chosen_rewards = model_chosen_logprobs - reference_chosen_logprobs
    rejected_rewards = model_rejected_logprobs - reference_rejected_logprobs
    margins = chosen_rewards - rejected_rewards  # (b,)
    if kind == "ipo":
        losses = (margins - 1 / (2 * beta)) ** 2
    else:
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * margins)
        losses = losses - label_smoothing * F.logsigmoid(-beta * margins)
    return losses.mean(), chosen_rewards.detach().mean(), rejected_rewards.detach().mean()


def check_choice(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"the {what} must be one of {known}, got {given!r}")


def pair_logprobs(
    batch: dict, model: nn.Module, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """``compute_logprobs`` of the chosen and of the rejected answers, (b,) each."""
    return tuple(
        compute_logprobs(model(batch[name]), batch[name], batch[f"{name}_mask"], reduction)
        for name in ("chosen", "rejected")
    )


def compute_dpo_loss_batch(
    batch: dict,
    policy_model: nn.Module,
    reference_model: nn.Module | None,
    beta: float,
    reduction: str = "mean",
    **options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``compute_dpo_loss`` of a batch; gradients reach the policy only.

    Without a ``reference_model``, the batch has what ``cache_reference`` computed, or the reference
    is the policy with its LoRA adapters off. ``options`` are ``kind`` and ``label_smoothing``.
    """
    policy = pair_logprobs(batch, policy_model, reduction)
    reference = reference_logprobs(batch, policy_model, reference_model, reduction)
    return compute_dpo_loss(*policy, *reference, beta, **options)


# --- The reference


def reference_logprobs(
    batch: dict, policy_model: nn.Module, reference_model: nn.Module | None, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's log-probabilities, (b,) each; see ``compute_dpo_loss_batch``."""
    if reference_model is None and "reference_chosen" in batch:
        return _cached_logprobs(batch, reduction)
    with contextlib.ExitStack() as stack:
        if reference_model is None:
            stack.enter_context(adapters_off(policy_model))
            stack.enter_context(evaluating(policy_model))
        stack.enter_context(torch.no_grad())
        return pair_logprobs(batch, reference_model or policy_model, reduction)


def _cached_logprobs(batch: dict, reduction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """From sums over tokens; these must be the very tokens that the batch's masks select."""
    found = []
    for name in ("chosen", "rejected"):
        counts = batch[f"{name}_mask"][:, 1:].sum(-1)
        if not torch.equal(counts, batch[f"reference_{name}_tokens"]):
            raise ValueError(
                "the cached reference was computed with other masks: use the same collate function "
                "for cache_reference and for training"
            )
        total = batch[f"reference_{name}"]
        found.append(total if reduction == "sum" else total / counts.clamp(min=1))
    return tuple(found)


def cache_reference(
    dataset: PreferenceDataset,
    reference_model: nn.Module,
    collate_fn: Callable[[list[dict]], dict],
    batch_size: int = 8,
) -> None:
    """Compute the reference's log-probabilities once and keep them with the pairs.

    Batches of the dataset then have ``reference_chosen``, ``reference_rejected`` (b,) and the
    numbers of tokens that these sums are over, and training needs no second model. For a policy
    with new LoRA layers, whose change is still zero, it can be the reference itself.
    """
    dataset.reference = None
    found = []
    with evaluating(reference_model):
        for batch in DataLoader(dataset, batch_size, collate_fn=collate_fn):
            chosen, rejected = pair_logprobs(batch, reference_model, "sum")
            counts = [batch[f"{name}_mask"][:, 1:].sum(-1) for name in ("chosen", "rejected")]
            columns = [values.tolist() for values in (chosen, rejected, *counts)]
            found += zip(*columns, strict=True)
    names = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    named = [f"reference_{name}" for name in names]
    dataset.reference = [dict(zip(named, values, strict=True)) for values in found]


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model that its LoRA layers were added to, for a while: nothing is copied.

    Raises ``ValueError`` for a model without LoRA layers, and for one whose changes are merged.
    """
    check_not_merged(model)
    layers = [module for module in model.modules() if isinstance(module, LinearWithLoRA)]
    if not layers:
        raise ValueError(
            "the model has no LoRA layers to switch off: give a reference model of its own"
        )
    try:
        for layer in layers:
            layer.forward = layer.linear.forward  # in place of the method of its class
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def mean_kl(
    logits: torch.Tensor, reference_logits: torch.Tensor, selection_mask: torch.Tensor
) -> torch.Tensor:
    """How far a policy's next-token distributions are from its reference's: KL divergence, (b,).

    In nats, ``sum(p * log(p / q))`` with p the policy's and q the reference's probabilities, as the
    mean over the positions before selected tokens; 0 for a row without any.
    """
    log_p = F.log_softmax(logits[:, :-1].float(), dim=-1)
    log_q = F.log_softmax(reference_logits[:, :-1].float(), dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # (b, num_tokens - 1)
    mask = selection_mask[:, 1:].to(divergence)
    return (divergence * mask).sum(-1) / mask.sum(-1).clamp(min=1)


# --- Training


def compute_dpo_loss_loader(
    data_loader: Iterable,
    policy_model: nn.Module,
    reference_model: nn.Module | None,
    beta: float,
    num_batches: int | None = None,
    **options,
) -> tuple[float, float, float]:
    """Loss and rewards, as means over the first ``num_batches`` batches, or over all.

    Three NaNs if there is no batch.
    """
    rows = []
    for batch in take_batches(data_loader, num_batches):
        values = compute_dpo_loss_batch(batch, policy_model, reference_model, beta, **options)
        rows.append([value.item() for value in values])
    if not rows:
        return math.nan, math.nan, math.nan
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def evaluate_dpo_loss_loader(
    policy_model: nn.Module,
    reference_model: nn.Module | None,
    train_loader: Iterable,
    val_loader: Iterable,
    beta: float,
    eval_iter: int | None,
    **options,
) -> dict[str, float]:
    """Loss and rewards on both loaders, ``eval_iter`` batches each, without dropout."""
    result = {}
    with evaluating(policy_model):
        for part, loader in (("train", train_loader), ("val", val_loader)):
            values = compute_dpo_loss_loader(
                loader, policy_model, reference_model, beta, eval_iter, **options
            )
            named = zip(MEASURES, values, strict=True)
            result |= {f"{part}_{name}": value for name, value in named}
    return result


def train_model_dpo_simple(
    policy_model: nn.Module,
    reference_model: nn.Module | None,
    train_loader: Iterable,
    val_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    num_epochs: int,
    beta: float,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer,
    **options,
) -> dict[str, list]:
    """Train the policy; after each epoch, print how it goes on with ``start_context``.

    Every ``eval_freq`` updates, losses and reward margins are printed and kept: the result has a
    list for each measure of ``evaluate_dpo_loss_loader``, and ``tokens_seen``.
    """
    measures = [f"{part}_{name}" for part in ("train", "val") for name in MEASURES]
    plural = {"train_loss": "train_losses", "val_loss": "val_losses"}
    tracking = {plural.get(name, f"{name}s"): [] for name in measures} | {"tokens_seen": []}
    tokens_seen, step = 0, -1
    device = next(policy_model.parameters()).device
    for epoch in range(num_epochs):
        policy_model.train()
        for batch in train_loader:
            optimizer.zero_grad()
            models = policy_model, reference_model
            loss, _, _ = compute_dpo_loss_batch(batch, *models, beta, **options)
            loss.backward()
            optimizer.step()
            tokens_seen, step = tokens_seen + batch["chosen"].numel(), step + 1
            if step % eval_freq == 0:
                loaders = train_loader, val_loader
                found = evaluate_dpo_loss_loader(*models, *loaders, beta, eval_iter, **options)
                for name in measures:
                    tracking[plural.get(name, f"{name}s")].append(found[name])
                tracking["tokens_seen"].append(tokens_seen)
                print_progress(epoch, step, found)
        generate_and_print_sample(policy_model, tokenizer, device, start_context)
    return tracking


def print_progress(epoch: int, step: int, found: dict[str, float]) -> None:
    """One line: losses and reward margins."""
    margins = {
        part: found[f"{part}_chosen_reward"] - found[f"{part}_rejected_reward"]
        for part in ("train", "val")
    }
    print(
        f"Ep {epoch + 1} (Step {step:06d}): "
        f"Train loss {found['train_loss']:.3f}, Val loss {found['val_loss']:.3f}, "
        f"Train margin {margins['train']:.3f}, Val margin {margins['val']:.3f}"
    )
