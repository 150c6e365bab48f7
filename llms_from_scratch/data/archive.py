"""Unpacking archives without leaving the target folder."""

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath


def check_member_name(name: str) -> None:
    """Raise ``ValueError`` if an archive's member would be written outside of the target folder.

    The rules of POSIX and of Windows are applied on every system.

    >>> check_member_name("folder/file.txt")
    >>> check_member_name("../file.txt")
    Traceback (most recent call last):
    ValueError: archive member '../file.txt' would leave the target folder: refused
    """
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    escapes = ".." in windows.parts or ".." in posix.parts
    if escapes or windows.drive or windows.root or posix.is_absolute() or not name:
        raise ValueError(f"archive member {name!r} would leave the target folder: refused")


def check_zip(archive: str | Path) -> None:
    """Raise ``ValueError`` if a file is no zip archive, or a checksum in it is wrong.

    Every member is read once, piece by piece. A password or an unknown method of compression
    counts as damage.
    """
    with Path(archive).open("rb") as file:  # a file that is missing is not damaged
        try:
            with zipfile.ZipFile(file) as zip_file:
                damaged = zip_file.testzip()
        except Exception as error:  # one wrong bit can claim any size, position, method, password
            reason = str(error) or type(error).__name__
            raise ValueError(f"{archive} is not a whole zip archive: {reason}") from error
    if damaged is not None:
        raise ValueError(
            f"{archive} is not a whole zip archive: the checksum of {damaged!r} is wrong"
        )


def extract_zip(archive: str | Path, folder: str | Path) -> list[Path]:
    """Unpack a zip archive into ``folder`` and return the paths of its files.

    All names and checksums are checked before the first file is written. Raises ``ValueError`` for
    a member that would leave the folder, and for a file that is not a whole zip archive.
    """
    check_zip(archive)
    with zipfile.ZipFile(archive) as zip_file:
        members = [info for info in zip_file.infolist() if not info.is_dir()]
        for info in members:
            check_member_name(info.filename)
        return [Path(zip_file.extract(info, folder)) for info in members]


def read_zip_member(archive: str | Path, member: str) -> bytes:
    """The bytes of one file in a zip archive.

    Raises ``ValueError`` if there is no such file, or if anything in the archive is damaged.
    """
    check_zip(archive)
    try:
        with zipfile.ZipFile(archive) as zip_file:
            return zip_file.read(member)
    except KeyError:
        raise ValueError(f"{archive} has no member {member!r}") from None
