"""What a file says about itself: enough to know a wrong or a cut one before it is used."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llms_from_scratch.data.archive import check_zip

LFS_POINTER = b"version https://git-lfs"
# Byte order marks; that of UTF-32 begins like the one of UTF-16
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
TF_TABLE_END = bytes.fromhex("57fb808b247547db")  # the last bytes of a TensorFlow ``.index`` file


def check_format(path: Path, file_name: str) -> None:
    """Raise ``ValueError`` if a file cannot be what its name says.

    ``file_name`` may be another name than that of ``path``, which has a temporary one. No file may
    be empty, a web page or the text that git-lfs keeps in place of a large file. Further checks go
    by the ending: ``.safetensors`` must have as many bytes as its header says, ``.json`` must
    parse, ``.zip`` must have the checksums that it lists; TensorFlow's files must be complete.
    """
    if fault := _fault_of_start(path, file_name):
        raise ValueError(f"got {fault}, {path.stat().st_size} bytes, instead of {file_name}")
    check = CHECKS.get(Path(file_name).suffix)
    try:
        if check:
            check(path)
    except (ValueError, RecursionError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"got another or a damaged file, {size} bytes, instead of {file_name}: {error}"
        ) from None


def _fault_of_start(path: Path, file_name: str) -> str | None:
    """What a file is that no name can excuse, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "nothing"
    if start.startswith(LFS_POINTER):
        return "a git-lfs pointer (run `git lfs pull` where the file was cloned)"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    is_page = text.startswith((b"<!doctype html", b"<html"))
    if is_page and not file_name.endswith((".html", ".htm")):
        return "a web page (from a proxy or a login form?)"
    return None


def check_safetensors(path: Path) -> None:
    """The header must be readable, and describe each byte that follows."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from None


def read_json(path: Path) -> dict | list:
    """The list or dictionary in a UTF-8 file; ``ValueError`` if there is something else."""
    content = json.loads(path.read_bytes().decode("utf-8-sig"))
    if not isinstance(content, dict | list):
        raise ValueError(f"it holds a {type(content).__name__}, not a list or a dictionary")
    return content


def decode_text(content: bytes, encoding: str = "utf-8") -> str:
    r"""Text without byte order mark, each line ending with a line feed alone.

    A mark of UTF-8, UTF-16 or UTF-32 says how the text is encoded; without one it is ``encoding``.
    Raises ``UnicodeDecodeError`` for other bytes.

    >>> decode_text(b"\xff\xfeH\x00i\x00"), decode_text(b"one\r\ntwo\r")
    ('Hi', 'one\ntwo\n')
    """
    named = next((name for mark, name in MARKS if content.startswith(mark)), encoding)
    return content.decode(named).replace("\r\n", "\n").replace("\r", "\n")


def _check_tf_index(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(-min(8, path.stat().st_size), 2)
        if file.read() != TF_TABLE_END:
            raise ValueError("it does not end like an index of a TensorFlow checkpoint")


def _check_protobuf(path: Path) -> None:
    """The outermost fields, each with its length in front, must fill the file."""
    content, position = path.read_bytes(), 0
    while position < len(content):
        tag, position = _read_varint(content, position)
        if tag & 7 != 2:  # TensorFlow's graphs have no other kind of field here
            raise ValueError(f"it has no protocol buffer's field at byte {position}")
        length, position = _read_varint(content, position)
        position += length
    if position > len(content):
        raise ValueError("its end is missing")


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(content):
            break
        byte, position = content[position], position + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"it has no whole number at byte {position}")


CHECKS: dict[str, Callable[[Path], object]] = {
    ".safetensors": check_safetensors,
    ".json": read_json,
    ".zip": check_zip,
    ".index": _check_tf_index,
    ".meta": _check_protobuf,
}
