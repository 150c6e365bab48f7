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
) -> Path:
    """The folder, made if necessary, if a run may write its ``results`` (names) there.

    Raises ``ValueError`` if one of them is there already, unless ``resume`` or ``overwrite`` is
    given, and if there is nothing to resume. Nothing is removed yet: see ``clear_run_folder``.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run, --overwrite replaces it: give only one of them")
    if not str(path):
        raise ValueError(f"{option} is empty: name a folder for the results, or leave it out")
    folder = Path(path)
    found = [name for name in results if (folder / name).exists()]
    if resume and CHECKPOINT not in found:
        if found:
            raise ValueError(
                f"the run in {folder} is finished, nothing is left to resume: see {found[0]}; "
                f"--overwrite begins anew, and so does another {option}"
            )
        raise ValueError(f"there is no checkpoint at {folder / CHECKPOINT}: leave out --resume")
    if found and not resume and not overwrite:
        way = "--resume continues it, " if CHECKPOINT in found else ""
        raise ValueError(
            f"{folder} holds the results of another run ({', '.join(found)}): {way}--overwrite "
            f"replaces it, or choose another {option}"
        )
    return writable_folder(folder)


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
