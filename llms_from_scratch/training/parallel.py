"""One model that several processes train together: ``torchrun ... --parallel ddp`` or ``fsdp``.

With ``ddp``, each process has the whole model and computes the gradients of its rows of a batch;
the gradients are averaged, so all make the same update. With ``fsdp``, each keeps only its part of
the weights, gradients and optimizer's numbers; a block's weights are put together while it is
computed. Either way, batches and losses are those of one process, whatever the number of processes:
only dropout draws other masks, and sums are rounded in another order.

Sources: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training"
(2020); Zhao et al., "PyTorch FSDP" (2023).
"""

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from llms_from_scratch.ch05 import calc_loss_batch, evaluate_model, evaluating, take_batches
from llms_from_scratch.saving import plain_state_dict
from llms_from_scratch.training.checkpoint import load_checkpoint, save_checkpoint
from llms_from_scratch.training.data_order import deal
from llms_from_scratch.training.distributed import (
    ddp_setup,
    keep_until_exit,
    max_over_ranks,
    sum_over_ranks,
)
from llms_from_scratch.training.sharded import load_sharded, save_sharded

MODES = ("ddp", "fsdp")
PATIENCE = timedelta(days=1)  # how long ranks wait for rank 0, which tokenizes texts say


class Alone:
    """One process, with nobody to wait for: what a ``Team`` does, done without one."""

    mode: str | None = None
    device: torch.device | None = None  # the caller's choice
    rank, size = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, and writes what is written once."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Add up each number over all processes."""
        return list(numbers)

    def max(self, number: int) -> int:
        """The largest of the numbers of all processes."""
        return number

    def wait(self) -> None:
        """Until all processes have come to this point."""

    def wrap(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """The model as it is trained; make the optimizer from this one."""
        return model

    def deal(self, loader: DataLoader) -> DataLoader:
        """The same batches, of which this process reads its rows."""
        return deal(loader, self.rank, self.size)

    def random_numbers(self, step: int) -> contextlib.AbstractContextManager:
        """What dropout draws from: each process has masks of its own."""
        return contextlib.nullcontext()

    def sharing_gradients(self, model: nn.Module, now: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward pass: whether the gradients so far are averaged ``now``."""
        return contextlib.nullcontext()

    def evaluate(self, model, train_loader, val_loader, device, eval_iter) -> tuple[float, float]:
        """``evaluate_model`` of chapter 5, over the rows of all processes."""
        return evaluate_model(model, train_loader, val_loader, device, eval_iter)

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The whole weights under plain names."""
        return plain_state_dict(model)

    def save_checkpoint(self, path: Path, model, optimizer, scheduler, **belongings) -> None:
        save_checkpoint(path, model, optimizer, scheduler, **belongings)

    def load_checkpoint(self, path: Path, model, optimizer, scheduler, **belongings) -> dict:
        return load_checkpoint(path, model, optimizer, scheduler, **belongings)


class Team(Alone):
    """The processes that ``torchrun`` has started, seen from one of them; see ``join``."""

    def __init__(self, mode: str, rank: int, size: int, device: torch.device, seed: int):
        self.mode, self.rank, self.size = mode, rank, size
        self.device, self.seed = device, seed
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        keep_until_exit(self.patient)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        return sum_over_ranks(numbers, self.device)

    def max(self, number: int) -> int:
        return max_over_ranks(number, self.device)

    def wait(self) -> None:
        dist.barrier(self.patient)

    def wrap(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """``dtype`` is what ``fsdp`` computes in; weights and sums of gradients stay float32."""
        if self.mode == "fsdp":
            return shard(model, self.device, dtype)
        return replicate(model, self.device)

    @contextlib.contextmanager
    def random_numbers(self, step: int) -> Iterator[None]:
        # A function of the step, so that nothing of it has to be saved; and the common random
        # numbers, from which the order of the data comes, stay the same in all processes
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(((self.seed * 1_000_003 + step) * 65_537 + self.rank) % (1 << 63))
            yield

    @contextlib.contextmanager
    def sharing_gradients(self, model: nn.Module, now: bool) -> Iterator[None]:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(now)
            yield
        else:
            with contextlib.nullcontext() if now else model.no_sync():
                yield

    def evaluate(self, model, train_loader, val_loader, device, eval_iter) -> tuple[float, float]:
        with evaluating(model):
            return tuple(
                self._mean_loss(model, loader, device, eval_iter)
                for loader in (train_loader, val_loader)
            )

    def _mean_loss(self, model, loader, device, num_batches: int | None) -> float:
        """Mean over the batches of the mean loss of all their targets, whoever has the rows."""
        losses, counts = [], []
        for inputs, targets in take_batches(loader, num_batches):
            losses.append(calc_loss_batch(inputs, targets, model, device).item() * len(targets))
            counts.append(len(targets))
        if not counts:
            return float("nan")
        sums = self.sum(losses + counts)
        losses, counts = sums[: len(losses)], sums[len(losses) :]
        return sum(loss / n for loss, n in zip(losses, counts, strict=True)) / len(counts)

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """All processes must call it, for the parts of each are needed."""
        state = plain_state_dict(model)
        return {name: _whole(tensor) for name, tensor in state.items()}

    def save_checkpoint(self, path: Path, model, optimizer, scheduler, **belongings) -> None:
        if self.mode == "fsdp":
            save_sharded(path, model, optimizer, scheduler, **belongings)
        elif self.is_main:
            save_checkpoint(path, model, optimizer, scheduler, **belongings)
        self.wait()

    def load_checkpoint(self, path: Path, model, optimizer, scheduler, **belongings) -> dict:
        load = load_sharded if self.mode == "fsdp" else load_checkpoint
        progress = load(path, model, optimizer, scheduler, **belongings)
        self.wait()
        return progress


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """Let each process have the whole model, and average its gradients with those of the others."""
    options = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers"  # since PyTorch 2.13
    # The buffers, masks of the attention, are the same everywhere and stay so
    keep_buffers = {new if new in options else "broadcast_buffers": False}
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=devices, gradient_as_bucket_view=True, **keep_buffers
    )


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """Keep only this process's part of each weight of a GPT, block by block (FSDP2).

    What is not in a block, the embeddings and the output layer, is one group: these may be tied.
    With ``dtype``, blocks compute in it; the loss gets float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    reduced = torch.float32 if dtype else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced)
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    outer = MixedPrecisionPolicy(dtype, reduced, output_dtype=torch.float32 if dtype else None)
    return fully_shard(model, mesh=mesh, mp_policy=outer)


def checkpoint_activations(model: nn.Module) -> None:
    """Let each block of a GPT keep its input only, and compute again what its backward pass needs.

    A third more arithmetic for much less memory. Source: Chen et al., "Training Deep Nets with
    Sublinear Memory Cost" (2016).
    """
    for block in model.trf_blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def join(mode: str | None, device: str = "auto", seed: int = 123) -> Alone:
    """Join the processes of ``torchrun`` for ``--parallel`` ``mode``; ``Alone`` for None.

    ``device`` is "auto", "cuda" or "cpu". Raises ``ValueError`` if ``torchrun`` has started
    processes without a mode, or if there is a mode without ``torchrun``.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    is_started = "LOCAL_RANK" in os.environ
    if mode is None:
        if is_started and size > 1:
            raise ValueError(
                f"torchrun has started {size} processes, and each would train the same model: add "
                "--parallel ddp (or fsdp), or start the script with python"
            )
        return Alone()
    if mode not in MODES:
        raise ValueError(f"--parallel must be one of {', '.join(MODES)}, got {mode!r}")
    if not is_started:
        raise ValueError(
            f"--parallel {mode} needs torchrun, which starts the processes: "
            f"torchrun --nproc-per-node 2 SCRIPT ... --parallel {mode}"
        )
    return _join(mode, int(os.environ["RANK"]), size, device, seed)


def _join(mode: str, rank: int, size: int, device: str, seed: int) -> Team:
    kind = torch.device("cuda" if device == "auto" else device).type
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"--parallel works on cuda and cpu, not on --device {device}")
    found = ddp_setup(rank, size, use_gpus=kind == "cuda")
    if device != "auto" and found.type != kind:
        raise ValueError(
            f"--device {device} needs a GPU for each process, and here are "
            f"{torch.cuda.device_count()}: start fewer processes, or use --device cpu"
        )
    return Team(mode, rank, size, found, seed)


def leave() -> None:
    """Take leave of the others, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_divisible(batch_size: int, mode: str | None) -> None:
    """Raise ``ValueError`` if a batch cannot be dealt evenly to the processes of ``torchrun``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if mode is not None and batch_size % size:
        raise ValueError(
            f"a batch of {batch_size} rows cannot be dealt evenly to {size} processes: choose a "
            f"batch size that {size} divides, or {_divisors(batch_size)} processes"
        )


def _divisors(number: int) -> str:
    """The numbers of processes that a batch suits.

    >>> _divisors(12)
    '1, 2, 3, 4, 6 or 12'
    """
    *most, last = [str(n) for n in range(1, number + 1) if number % n == 0]
    return f"{', '.join(most)} or {last}" if most else last
