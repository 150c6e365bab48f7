"""What every script needs: a device, a folder to write to, and short error messages."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llms_from_scratch.app.console import one_line, tolerate_any_console
from llms_from_scratch.data.http import DownloadError


def pick_device(name: str = "auto"):
    """The ``torch.device`` of a name; ``"auto"`` is CUDA, else MPS (Apple), else CPU.

    Raises ``ValueError`` for an unknown device or one that this machine does not have.
    """
    import torch  # takes a second, which --help can do without

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if _mps_works() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try auto or cpu") from None
    return device


def _mps_works() -> bool:
    """Whether Apple's GPU gives right answers where some PyTorch versions did not."""
    import torch

    if not torch.backends.mps.is_available():
        return False
    row = torch.tensor([[1.0, 3.0, 2.0]], device="mps")
    return row.argmax(dim=-1).item() == 1 and abs(torch.softmax(row, -1).sum().item() - 1) < 1e-5


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options with which several devices, or a small one, train a model."""
    from llms_from_scratch.training.distributed import positive_int

    parser.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        help="how the processes of torchrun share the work (default: one process)",
    )
    parser.add_argument(
        "--activation_checkpointing",
        action="store_true",
        help="less memory for a third more arithmetic",
    )
    parser.add_argument(
        "--accumulate", type=positive_int, default=1, help="batches for one update (default: 1)"
    )


def writable_folder(path: str | Path) -> Path:
    """Create a folder if necessary and return it; ``ValueError`` if one cannot write there."""
    if not str(path):
        raise ValueError("the name of the folder to write to is empty: give one, '.' say")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror}): choose another folder"
        ) from None
    return folder


@contextlib.contextmanager
def short_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Show what the user can mend as one line, with exit code 2, instead of a traceback.

    That is any ``ValueError``, ``OSError`` or ``DownloadError``. Where the reader of our output
    (``head``, say) has seen enough, the script ends without a word. Ctrl-C gives exit code 130, and
    a training whose numbers are no longer finite 1, with one line each too.
    """
    tolerate_any_console()
    try:
        yield
    except BrokenPipeError:
        sys.stdout = None
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped by Ctrl-C\n")
    except FloatingPointError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except (ValueError, OSError, DownloadError) as error:
        parser.exit(2, f"{parser.prog}: error: {one_line(error)}\n")
