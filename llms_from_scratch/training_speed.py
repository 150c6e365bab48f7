"""What makes the training of chapter 5's GPT fast, and a loop that measures how fast it is.

``GPTModelForTraining`` computes the function of chapter 4's ``GPTModel`` on fused kernels, and the
loss without the logits of the whole batch. ``AdamWWithMasters`` trains weights in bfloat16 and
keeps exact ones beside them. ``train_model_simple_with_timing`` logs tokens per second.
"""

import importlib.util
import math
import os
import shutil
import time
import weakref
from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, DistributedSampler

from llms_from_scratch.ch02 import GPTDatasetV1
from llms_from_scratch.ch03 import PyTorchMultiHeadAttention
from llms_from_scratch.ch04 import GPTModelFast, check_input_ids
from llms_from_scratch.ch05 import (
    calc_loss_batch,
    check_has_batches,
    evaluating,
    generate_and_print_sample,
    take_batches,
)
from llms_from_scratch.chunked_loss import chunked_cross_entropy
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.distributed import sum_over_ranks

# --- The model ---


class GPTModelForTraining(GPTModelFast):
    """``GPTModelFast`` that can be given the targets too, and then returns the loss.

    ``model(in_idx)`` are the logits (b, num_tokens, vocab_size); ``model(in_idx, targets)`` is the
    mean cross entropy, in chunks of ``chunk_size`` rows. With ``padded_vocab_size``, the matrices
    of the vocabulary get more rows, which have no probability: a GPU prefers multiples of 64. The
    same seed gives the same weights with and without padding.
    """

    def __init__(self, cfg: dict, padded_vocab_size: int | None = None, chunk_size: int = 1024):
        super().__init__(cfg)
        self.chunk_size = chunk_size
        if padded_vocab_size is not None:
            self.tok_emb.weight = pad_rows(self.tok_emb.weight, padded_vocab_size)
            self.out_head.weight = pad_rows(self.out_head.weight, padded_vocab_size)

    def forward(self, in_idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        vocab_size, context_length = self.cfg["vocab_size"], self.cfg["context_length"]
        check_input_ids(in_idx, vocab_size, context_length)
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))
        x = self.final_norm(self.trf_blocks(x))  # (b, num_tokens, emb_dim)
        if targets is None:
            return self.out_head(x)[..., :vocab_size]  # (b, num_tokens, vocab_size)
        return chunked_cross_entropy(
            x, self.out_head.weight, targets, self.chunk_size, num_classes=vocab_size
        )

    def compile_blocks(self) -> None:
        """Compile the blocks in place: they are alike, so one compilation serves all of them."""
        for block in self.trf_blocks:
            block.compile()

    def unpadded_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights as ``GPTModelFast`` loads them: without the padding."""
        state, vocab_size = self.state_dict(), self.cfg["vocab_size"]
        for name in ("tok_emb.weight", "out_head.weight"):
            state[name] = state[name][:vocab_size].clone()
        return state


def pad_rows(weight: nn.Parameter, num_rows: int) -> nn.Parameter:
    """A parameter (rows, emb_dim) with zeros below, (num_rows, emb_dim)."""
    if num_rows < len(weight):
        raise ValueError(
            f"a vocabulary of {len(weight)} cannot be padded to {num_rows}: give at least as many"
        )
    return nn.Parameter(nn.functional.pad(weight.detach(), (0, 0, 0, num_rows - len(weight))))


class MatmulAttention(nn.Module):
    """``PyTorchMultiHeadAttention`` from plain matrix products, with that module's weights.

    Input and output (b, num_tokens, d_out). All scores exist at once, (b * num_heads, num_tokens,
    num_tokens). In bfloat16 on a CPU, this was faster than PyTorch's fused kernel up to 1,024
    tokens, and slower for longer texts and in float32. It is not meant for a GPU.
    """

    def __init__(self, fused: PyTorchMultiHeadAttention):
        super().__init__()
        self.qkv, self.proj, self.dropout = fused.qkv, fused.proj, fused.dropout
        self.num_heads, self.head_dim, self.d_out = fused.num_heads, fused.head_dim, fused.d_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, num_tokens, d_in = x.shape
        qkv = self.qkv(x).view(b, num_tokens, 3, self.num_heads, self.head_dim)
        # each (b * num_heads, num_tokens, head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)
        future = queries.new_full((num_tokens, num_tokens), -torch.inf).triu(1)
        scores = torch.baddbmm(future, queries, keys.mT, alpha=self.head_dim**-0.5)
        weights = nn.functional.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        context = weights.to(values.dtype) @ values  # (b * num_heads, num_tokens, head_dim)
        context = context.view(b, self.num_heads, num_tokens, self.head_dim)
        return self.proj(context.transpose(1, 2).reshape(b, num_tokens, self.d_out))


def use_matmul_attention(model: GPTModelFast) -> None:
    """Replace fused attention in all blocks; weights and their names stay."""
    for block in model.trf_blocks:
        block.att = MatmulAttention(block.att)


# --- The optimizer ---


class AdamWWithMasters(torch.optim.AdamW):
    """AdamW for a model in bfloat16 that updates exact copies of its weights.

    bfloat16 has 8 bits of precision: an update of less than 1/256 of a weight would be lost. So the
    optimizer keeps the weights in float32 too (masters), updates those, and rounds them into the
    model. Making the optimizer converts the model to ``dtype``; the masters are its weights from
    before. Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.1.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16, **options):
        self.rounded = [p for p in model.parameters() if p.requires_grad]
        masters = [nn.Parameter(p.detach().float().clone()) for p in self.rounded]
        model.to(dtype)  # the parameters stay the same objects
        super().__init__(masters, **options)

    @property
    def masters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        for master, rounded in zip(self.masters, self.rounded, strict=True):
            if rounded.grad is None:
                master.grad = None
            elif master.grad is None:
                master.grad = rounded.grad.float()
            else:
                master.grad.copy_(rounded.grad)  # its memory is used again
        result = super().step(closure)
        torch._foreach_copy_(self.rounded, self.masters)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        for rounded in self.rounded:
            rounded.grad = None


def make_optimizer(
    model: nn.Module, settings: dict, dtype: torch.dtype = torch.float32
) -> torch.optim.AdamW:
    """Fused AdamW: all weights in one kernel. For another type, the model is converted to it."""
    options = {
        "lr": settings["learning_rate"],
        "weight_decay": settings["weight_decay"],
        "fused": next(model.parameters()).device.type in ("cpu", "cuda", "mps"),
    }
    if dtype == torch.float32:
        return torch.optim.AdamW(model.parameters(), **options)
    return AdamWWithMasters(model, dtype, **options)


# --- Compilation ---


def why_no_compile(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot work on a device, or None if all it needs seems to be there."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "it needs a GPU of compute capability 7.0 or more"
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    if device.type != "cpu":
        return f"it is not used on {device.type}"
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++", "cl"]
    return None if any(map(shutil.which, compilers)) else "it needs a C++ compiler, such as g++"


def wants_compile(choice: bool | None, device: torch.device) -> bool:
    """Whether to compile: as chosen, or without a choice on a GPU that can.

    On a CPU, PyTorch's own kernels were as fast (see the notebook), and compiling takes a minute.
    Raises ``ValueError`` where it is chosen and cannot work.
    """
    reason = why_no_compile(device)
    if choice and reason:
        raise ValueError(f"--compile: {reason}; leave it out")
    return device.type == "cuda" and reason is None if choice is None else choice


# --- Data ---


def create_distributed_dataloader(
    txt: str,
    batch_size: int,
    max_length: int,
    stride: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
) -> DataLoader:
    """The share of process ``rank`` in the batches of ``create_dataloader_v1``.

    All processes shuffle in the same way, and take every ``world_size``-th window: together, their
    batches of ``batch_size`` are one batch of ``world_size * batch_size``. Windows that do not fill
    one are left out if ``shuffle``; otherwise none is, and processes may have unequal numbers.
    """
    dataset = GPTDatasetV1(txt, get_tokenizer("gpt2"), max_length, stride)
    if shuffle and len(dataset) < batch_size * world_size:
        raise ValueError(
            f"the text gives {len(dataset)} windows, which do not fill a single batch of "
            f"{batch_size} in each process ({world_size}): use a longer text or smaller batches"
        )
    sampler = range(rank, len(dataset), world_size)
    if shuffle:
        sampler = DistributedSampler(
            dataset, world_size, rank, shuffle=True, drop_last=True, seed=seed
        )
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        drop_last=shuffle,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


# --- The loop ---


class TokenClock:
    """Tokens per second of training, without what happens between: evaluation, samples.

    A GPU still works when a call returns, so the clock waits for it before it is read. The first
    window, from the start to the first ``lap``, is a warm-up and counts nothing: memory is
    allocated and kernels are chosen there, or compiled.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.is_warm = False
        self.tokens, self.seconds = 0.0, 0.0  # of all windows but the first

    def start(self) -> None:
        self._wait()
        self.started, self.in_window = time.perf_counter(), 0

    def count(self, tokens: int) -> None:
        self.in_window += tokens

    def lap(self) -> float | None:
        """End the window; tokens per second in it, of all processes, or None for the warm-up."""
        self._wait()
        seconds, tokens = time.perf_counter() - self.started, self.in_window
        if tokens == 0:
            return None
        if is_distributed():
            tokens = sum_over_ranks([tokens], self.device)[0]
        if not self.is_warm:
            self.is_warm = True
            return None
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        return tokens / seconds

    @property
    def average(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors had at one time while the mode is on; for a CPU, which keeps no
    such count itself.

    ``start`` are tensors that exist already, such as ``model.parameters()``. What PyTorch needs
    within an operation, and what compiled code allocates, is not seen.
    """

    def __init__(self, start: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()
        for tensor in start:
            self.add(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory, once, until it is given back."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def calc_loss_in_chunks(input_batch, target_batch, model, device) -> torch.Tensor:
    """``calc_loss_batch`` for a model that computes the loss itself; pinned batches are not
    waited for."""
    inputs, targets = (t.to(device, non_blocking=True) for t in (input_batch, target_batch))
    return model(inputs, targets)


@torch.no_grad()
def mean_loss(data_loader, model, device, num_batches, calc_loss=calc_loss_batch) -> float:
    """Mean loss per token over ``num_batches`` batches of each process, all of them together.

    NaN if there is no batch.
    """
    total, count = 0.0, 0
    for input_batch, target_batch in take_batches(data_loader, num_batches):
        loss = calc_loss(input_batch, target_batch, model, device).item()
        total, count = total + loss * target_batch.numel(), count + target_batch.numel()
    if is_distributed():
        total, count = sum_over_ranks([total, count], device)
    return total / count if count else math.nan


def train_model_simple_with_timing(
    model: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer=None,
    *,
    calc_loss=calc_loss_batch,
    sample_freq: int = 1,
) -> tuple[list[float], list[float], list[int]]:
    """``train_model_simple`` that also logs tokens per second; the same results.

    A speed is that of the updates since the line before, or since the epoch began, without
    evaluations and samples. The first update is a warm-up and in no figure. ``calc_loss`` is
    ``calc_loss_batch`` or ``calc_loss_in_chunks``. In a process group, ``model`` is wrapped in
    ``DistributedDataParallel``; figures are those of all processes, and rank 0 prints. A sample is
    written after every ``sample_freq``-th epoch.
    """
    check_has_batches(train_loader)
    network = getattr(model, "module", model)  # without the wrapper: nothing is exchanged there
    is_first = not is_distributed() or dist.get_rank() == 0
    world_size = dist.get_world_size() if is_distributed() else 1
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, step, clock = 0, -1, TokenClock(device)
    clock.start()
    for epoch in range(num_epochs):
        if isinstance(getattr(train_loader, "sampler", None), DistributedSampler):
            train_loader.sampler.set_epoch(epoch)  # the same new order in all processes
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            calc_loss(input_batch, target_batch, model, device).backward()
            optimizer.step()
            clock.count(input_batch.numel())
            tokens_seen += input_batch.numel() * world_size
            step += 1
            if step % eval_freq == 0:
                speed = clock.lap()
                with evaluating(network):
                    losses = [
                        mean_loss(loader, network, device, eval_iter, calc_loss)
                        for loader in (train_loader, val_loader)
                    ]
                train_losses.append(losses[0])
                val_losses.append(losses[1])
                track_tokens_seen.append(tokens_seen)
                if is_first:
                    print(log_line(epoch, step, *losses, speed, clock.average), flush=True)
                clock.start()
        clock.lap()
        if tokenizer is not None and is_first and (epoch + 1) % sample_freq == 0:
            generate_and_print_sample(network, tokenizer, device, start_context)
        clock.start()
    if is_first:
        print(summary(step + 1, clock.average, torch.device(device)))
    return train_losses, val_losses, track_tokens_seen


def log_line(epoch, step, train_loss, val_loss, speed, average) -> str:
    """One line of the log; a speed that is not known yet is a dash.

    >>> log_line(0, 15, 9.5, 9.61, 1250.4, None)
    'Ep 1, Step 000015, Train: 9.500, Val: 9.610, Step tok/sec: 1250, Avg tok/sec: -'
    """
    speeds = ["-" if value is None else f"{value:.0f}" for value in (speed, average)]
    losses = f"Train: {train_loss:.3f}, Val: {val_loss:.3f}"
    return (
        f"Ep {epoch + 1}, Step {step:06d}, {losses}, "
        f"Step tok/sec: {speeds[0]}, Avg tok/sec: {speeds[1]}"
    )


def summary(steps: int, average: float | None, device: torch.device) -> str:
    """Speed and memory of a run: on a GPU the most that was allocated and reserved, in GB."""
    speed = "too few to measure a speed" if average is None else f"{average:,.0f} tokens/s"
    text = f"{steps} updates, {speed} (the first update is not counted)"
    if device.type == "cuda":
        allocated, reserved = (
            torch.cuda.max_memory_allocated(device) / 1e9,
            torch.cuda.max_memory_reserved(device) / 1e9,
        )
        text += f"; GPU memory: {allocated:.2f} GB allocated, {reserved:.2f} GB reserved"
    return text
