"""Printing on consoles of all kinds."""

import errno
import sys

REASONS = {
    errno.EACCES: "permission denied: change its mode or owner, or choose another path",
    errno.EPERM: "permission denied: change its mode or owner, or choose another path",
    errno.EROFS: "it lies on a file system that is read-only: choose another path",
    errno.EISDIR: "is a folder, but a file is needed: give the path of one",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOSPC: "the disk is full",
}


def tolerate_any_console() -> None:
    """Write UTF-8 to files and pipes; on a console, print "?" for what it cannot show.

    A console may have an old code page. A file has none: whoever reads it expects UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")


def one_line(error: Exception) -> str:
    """What an error says, without the number that the system has for it.

    >>> one_line(IsADirectoryError(21, "Is a directory", "books"))
    'books: is a folder, but a file is needed: give the path of one'
    """
    if not isinstance(error, OSError) or error.strerror is None or error.filename is None:
        return str(error)
    generic = error.strerror[:1].isupper()  # the system's words; ours begin in lower case
    reason = REASONS.get(error.errno, error.strerror) if generic else error.strerror
    return f"{error.filename}: {reason}"
