"""Several processes that train one model together (appendix A, section A.9.3).

Each process has a number, its *rank*; the number of all processes is the *world size*. Here is what
such programs have in common: start processes, join them to a group, add up numbers over all.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(minutes=2)  # how long a rank waits for the others, at the start and later
GRACE_PERIOD = 5  # seconds that the other ranks have to end by themselves when one has failed
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the network interface that stays on the machine

_kept_groups = []
_kept_works = deque(maxlen=16)


class RankFailed(RuntimeError):
    """A process of the group raised an error or was killed; all of them have been stopped."""


def ddp_setup(rank: int, world_size: int, use_gpus: bool = True) -> torch.device:
    """Join this process to the group as number ``rank``, and return the device it computes on.

    One GPU per process and the NCCL backend if there are enough GPUs (and ``use_gpus``), else CPU
    and Gloo. All processes must call this; each waits until the others have come.
    """
    if sys.platform == "win32":
        os.environ["USE_LIBUV"] = "0"  # PyTorch for Windows is built without libuv
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # where rank 0 waits for the others
    os.environ.setdefault("MASTER_PORT", "12345")

    # With several machines, torchrun says which process of its own machine this is
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if local_world_size == world_size and sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])

    # Two ranks cannot share a GPU
    use_gpus = use_gpus and torch.cuda.device_count() >= local_world_size
    device = torch.device("cuda", local_rank) if use_gpus else torch.device("cpu")
    if use_gpus:
        torch.cuda.set_device(device)
    backend = "nccl" if use_gpus and dist.is_nccl_available() else "gloo"  # no NCCL on Windows
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    keep_until_exit(dist.group.WORLD)
    return device


def sum_over_ranks(numbers: Sequence[float], device: torch.device | str) -> list[float]:
    """Add up each of some numbers over all ranks; each rank gets the sums."""
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    work = dist.all_reduce(sums, async_op=True)  # in place
    work.wait()
    keep_until_exit(work)
    return sums.tolist()


def max_over_ranks(number: int, device: torch.device | str) -> int:
    """The largest of the numbers that the ranks give; each rank gets it."""
    largest = torch.tensor(number, device=device)
    work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)
    work.wait()
    keep_until_exit(work)
    return int(largest)


def keep_until_exit(thing: object) -> None:
    """Keep Python from deleting a group, or one of its last operations, at a bad moment.

    Gloo has threads of its own, which need Python's lock to let go of a tensor. If Python deletes
    the group just then, it holds the lock and waits for these threads, for ever (seen with PyTorch
    2.13). With NCCL there is nothing to do.
    """
    if dist.get_backend() == "gloo":
        kept = _kept_groups if isinstance(thing, dist.ProcessGroup) else _kept_works
        kept.append(thing)


def launch(function: Callable, world_size: int, *args) -> None:
    """Run ``function(rank, world_size, *args)`` in ``world_size`` new processes of this machine.

    ``function`` must be importable, and the call must stand below ``if __name__ == "__main__":``,
    since new processes import the script again. If one process fails, the others are stopped and
    ``RankFailed`` is raised, within seconds; Ctrl-C stops all of them too.
    """
    # A port of our own, so that two jobs do not collide; one thread, or each process would want
    # all the cores
    with _environment_of_children(MASTER_PORT=str(free_port()), OMP_NUM_THREADS="1"):
        context = mp.spawn(function, args=(world_size, *args), nprocs=world_size, join=False)
    try:
        while not context.join(grace_period=GRACE_PERIOD):
            pass
    except mp.ProcessExitedException as error:
        raise RankFailed(_describe(context, error.error_index)) from None
    except mp.ProcessRaisedException as error:
        raise RankFailed(f"{_describe(context, error.error_index)}{error}") from None
    finally:
        for process in context.processes:
            process.kill()  # nothing happens to those that have ended


@contextlib.contextmanager
def _environment_of_children(**defaults: str) -> Iterator[None]:
    """Give variables to the processes that start meanwhile, if they have no value yet."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def training_options(description: str) -> argparse.ArgumentParser:
    """The command-line options that all scripts with several processes share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs", type=positive_int, default=3, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=2,
        metavar="N",
        help="examples per process and step (default: %(default)s)",
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the trained weights here")
    return parser


def check_save(path: Path | None) -> None:
    """Raise ``ValueError``, before hours of training, if weights cannot be written to a file."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--save {path} is a folder: give the name of a file in it")
    if not os.access(path.parent, os.W_OK):
        reason = "cannot be written to" if path.parent.is_dir() else "does not exist"
        raise ValueError(f"--save {path}: the folder {path.parent} {reason}")


def positive_int(text: str) -> int:
    """Turn a command-line argument into a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def free_port() -> int:
    """A port of this machine that nobody uses, and that systems do not hand out by themselves."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("found no free port between 20000 and 30000: set MASTER_PORT")


def _describe(context: mp.ProcessContext, failed: int) -> str:
    """How each process ended: the rank that is noticed first need not be the one that began."""
    ends = []
    for rank, process in enumerate(context.processes):
        code = process.exitcode
        signal_name = signal.strsignal(-code) if code < 0 else None
        ends.append(f"rank {rank}: exit code {code}{f' = {signal_name}' if signal_name else ''}")
    return f"rank {failed} failed, and all processes have been stopped ({', '.join(ends)})"
