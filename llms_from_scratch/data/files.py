"""Files that are never half-written, and hashes that say whether they are whole."""

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a limit of the process


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; on success it becomes ``path`` in one step.

    A reader sees the old file or the whole new one, also after a crash or a power cut. If the block
    raises, the temporary file is removed and ``path`` stays as it was. Whatever library writes it,
    others may read it as far as the umask allows. Raises ``OSError`` before the block if nothing
    can be written there; an ``OSError`` names ``path``, never the temporary file.
    """
    path = Path(path)
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder, but a file is to be written", str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        flush_to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # the new name must survive a power cut too
            flush_to_disk(path.parent)
    except Exception as error:
        if (named := _about_the_path(error, temporary, path)) is error:
            raise
        raise named from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _about_the_path(error: Exception, temporary: Path, path: Path) -> Exception:
    """The same error with the name that the user knows."""
    if not isinstance(error, OSError):  # torch and safetensors have errors of their own for it
        if re.search("unexpected pos|PytorchStreamWriter|I/O error", str(error)):
            return OSError(errno.EIO, "could not be written whole: is the disk full?", str(path))
    elif error.filename == str(temporary):
        if error.errno == errno.ENOENT:
            return FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))
        return OSError(error.errno, error.strerror, str(path))
    elif error.filename is None and error.errno in NO_SPACE:
        return OSError(error.errno, error.strerror, str(path))
    return error


def is_whole(path: Path, check: Callable[[Path], object]) -> bool:
    """Whether a file is there and passes the check, which raises ``ValueError`` if it does not.

    One in a folder that may not be read counts as absent.
    """
    try:
        if not path.is_file():
            return False
        check(path)
        return True
    except (ValueError, PermissionError):
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
