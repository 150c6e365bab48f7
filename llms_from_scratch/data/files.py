"""Files that are never half-written, and hashes that say whether they are whole."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path`` in one step.

    A reader sees the old file or the whole new one, also after a crash or a power cut. If the block
    raises, the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # the new name must survive a power cut too
            flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_whole(path: Path, check: Callable[[Path], object]) -> bool:
    """Whether a file is there and passes the check, which raises ``ValueError`` if it does not."""
    if not path.is_file():
        return False
    try:
        check(path)
        return True
    except ValueError:
        return False


def set_aside_if_damaged(path: Path, check: Callable[[Path], object]) -> None:
    """Keep a file that fails the check under a name that ends in ``.damaged``."""
    if path.is_file() and not is_whole(path, check):
        path.replace(path.with_name(path.name + ".damaged"))


def flush_to_disk(path: Path) -> None:
    """Wait until a closed file (or, on POSIX, a folder's list of names) is on the disk."""
    flags = os.O_RDONLY if os.name == "posix" else os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
