"""Trains a tiny GPT in one process or in several, for ``test_parallel.py``.

The processes are forked from one that has imported PyTorch, which saves seconds for each of them.
"""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FSDPModule

from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.training.distributed import free_port
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.training.parallel import Alone, Team, checkpoint_activations, join
from llms_from_scratch.training.token_files import create_dataloaders

CONFIG = {
    "vocab_size": 61,
    "context_length": 8,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
SEED = 123


def write_tokens(path: Path, count: int = 1600) -> Path:
    """Token ids with something to learn: each depends on the one before."""
    numbers = np.random.default_rng(1).integers(0, 3, count).cumsum() % CONFIG["vocab_size"]
    np.save(path, numbers.astype(np.uint16))
    return path


def new_trainer(team: Alone, folder: Path, name: str, **options) -> Trainer:
    """Four updates an epoch, each of two batches of 8 rows; clipped, with a schedule."""
    torch.manual_seed(SEED)
    model = GPTModel(CONFIG | {"drop_rate": options.pop("drop_rate", 0.0)})
    if options.pop("tied", False):
        model.out_head.weight = model.tok_emb.weight
    if options.pop("activation_checkpointing", False):
        checkpoint_activations(model)
    trained = team.wrap(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, weight_decay=0.1)
    seed = SEED if options.pop("seeded", True) else None
    rows = options.pop("batch_size", 8)
    loaders = create_dataloaders([folder / "tokens.npy"], 0.9, rows, 8, 22, seed=seed)
    train_loader, val_loader = map(team.deal, loaders)
    kind = "fsdp" if team.mode == "fsdp" else "pth"
    defaults = {
        "num_epochs": 2,
        "eval_freq": 3,
        "eval_iter": 2,
        "accumulate": 2,
        "max_grad_norm": 0.5,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40),
        "config": CONFIG,
        "settings": {"seed": SEED, "lr": 1e-2},
        "checkpoint_path": folder / f"{name}.{kind}",
        "log_path": folder / f"{name}.jsonl",
        "team": team,
    }
    device = team.device or "cpu"
    return Trainer(trained, optimizer, train_loader, val_loader, device, **(defaults | options))


def train(team: Alone, folder: Path, name: str, **options) -> dict:
    """Train, and return what can be compared; ``resume`` takes up the checkpoint first."""
    resume, kill = options.pop("resume", False), options.pop("kill", None)
    count = options.pop("count_sums", False)
    if kill:  # a rank and a step
        options["on_step"] = lambda step: _die() if (team.rank, step) == kill else None
    trainer = new_trainer(team, folder, name, **options)
    if resume:
        trainer.resume()
    with torch.profiler.profile() if count else contextlib.nullcontext() as profile:
        trainer.run()
    progress = trainer.progress
    weights = {name: tensor.clone() for name, tensor in team.state_dict(trainer.model).items()}
    losses = [progress.step_losses, progress.train_losses, progress.val_losses]
    sums = _count_sums(profile) if count else None
    return {
        "losses": losses,
        "tokens": progress.tokens_seen,
        "weights": weights,
        "sums": sums,
        "bytes": _own_bytes(trainer.model, trainer.optimizer),
    }


def _own_bytes(model, optimizer) -> dict[str, int]:
    """What this process keeps between two updates."""
    if isinstance(model, FSDPModule):
        model.reshard()
    numbers = [value for state in optimizer.state.values() for value in state.values()]

    def size(tensors) -> int:
        return sum(getattr(t, "_local_tensor", t).nbytes for t in tensors)

    return {"weights": size(model.parameters()), "AdamW": size(numbers)}


def _count_sums(profile: torch.profiler.profile) -> int:
    """How often numbers of all processes were added up: gradients, and a loss now and then."""
    names = ("c10d::allreduce", "c10d::reduce_scatter", "c10d::_reduce_scatter")
    return sum(event.count for event in profile.key_averages() if event.key.startswith(names))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_together(folder: Path, size: int, runs: list[dict]) -> dict:
    """Make these runs, one after the other, in ``size`` processes; the results by name."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["llms_from_scratch.training.loop"])
    os.environ["MASTER_PORT"] = str(free_port())
    try:
        mp.start_processes(_session, (size, folder, runs), nprocs=size, start_method="forkserver")
    finally:
        del os.environ["MASTER_PORT"]
    return {
        run["name"]: torch.load(folder / f"{run['name']}.result", weights_only=True) for run in runs
    }


def _session(rank: int, size: int, folder: Path, runs: list[dict]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    device = join("ddp", "cpu", SEED).device
    for run in runs:
        options = dict(run)
        name, mode = options.pop("name"), options.pop("mode")
        result = train(Team(mode, rank, size, device, SEED), folder, name, **options)
        if rank == 0:
            torch.save(result, folder / f"{name}.result")
    dist.destroy_process_group()
