"""The folder of a run: results are never replaced by chance, and only their own run goes on there.

All scripts that train have the same three options: a folder, ``--resume`` and ``--overwrite``.
"""

import argparse
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from llms_from_scratch.app.script_tools import writable_folder

CHECKPOINT = "checkpoint.pth"
SHARDED_CHECKPOINT = "checkpoint-fsdp"  # a folder to which each process of --parallel fsdp writes


def add_run_options(
    parser: argparse.ArgumentParser, default: str | None, about: str = "", option: str = "--out"
) -> None:
    """Give a parser the options of a run's folder; ``about`` describes a default that varies."""
    parser.add_argument(
        option, default=default, help=f"folder for all results (default: {about or default})"
    )
    parser.add_argument(
        "--resume", action="store_true", help=f"continue the run in {option} from its checkpoint"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace the run that {option} holds"
    )


def default_folder(name: str, preset: str) -> str:
    """Each preset has its own, so that a small run never stands in the way of a long one.

    >>> default_folder("gpt_train", "book"), default_folder("gpt_train", "tiny")
    ('runs/gpt_train', 'runs/gpt_train-tiny')
    """
    return f"runs/{name}" if preset == "book" else f"runs/{name}-{preset}"


def open_run_folder(
    path: str | Path,
    results: Iterable[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    option: str = "--out",
    parallel: str | None = None,
) -> Path:
    """The folder, made if necessary, if a run may write its ``results`` (names) there.

    Raises ``ValueError`` if one of them is there already, unless ``resume`` or ``overwrite`` is
    given, and if there is nothing to resume, or only what another value of ``--parallel`` has
    saved. Nothing is removed yet: see ``clear_run_folder``.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run, --overwrite replaces it: give only one of them")
    if not str(path):
        raise ValueError(f"{option} is empty: name a folder for the results, or leave it out")
    folder = Path(path)
    found = [name for name in results if (folder / name).exists()]
    if resume and checkpoint_name(parallel) not in found:
        _check_other_checkpoint(folder, found)
        if found:
            raise ValueError(
                f"the run in {folder} is finished, nothing is left to resume: see {found[0]}; "
                f"--overwrite begins anew, and so does another {option}"
            )
        missing = folder / checkpoint_name(parallel)
        raise ValueError(f"there is no checkpoint at {missing}: leave out --resume")
    if found and not resume and not overwrite:
        can_go_on = CHECKPOINT in found or SHARDED_CHECKPOINT in found
        way = "--resume continues it, " if can_go_on else ""
        raise ValueError(
            f"{folder} holds the results of another run ({', '.join(found)}): {way}--overwrite "
            f"replaces it, or choose another {option}"
        )
    return writable_folder(folder)


def checkpoint_name(parallel: str | None) -> str:
    """Where a run keeps its checkpoint; the file serves one process as well as ``ddp``.

    >>> checkpoint_name(None), checkpoint_name("ddp"), checkpoint_name("fsdp")
    ('checkpoint.pth', 'checkpoint.pth', 'checkpoint-fsdp')
    """
    return SHARDED_CHECKPOINT if parallel == "fsdp" else CHECKPOINT


def _check_other_checkpoint(folder: Path, found: list[str]) -> None:
    """Raise ``ValueError`` if a run could be resumed, but in another way."""
    if SHARDED_CHECKPOINT in found:
        raise ValueError(
            f"the run in {folder} was made with --parallel fsdp: resume it with torchrun and "
            "--parallel fsdp, on any number of processes (one too)"
        )
    if CHECKPOINT in found:
        raise ValueError(
            f"the run in {folder} was made without --parallel fsdp: resume it without --parallel, "
            "or with --parallel ddp"
        )


def clear_run_folder(folder: Path, results: Iterable[str]) -> None:
    """Remove what an earlier run has left, so that nothing of it stays beside the new results."""
    for path in (folder / name for name in results):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def hash_of_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes: how a run recognizes its data, whatever their name."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
