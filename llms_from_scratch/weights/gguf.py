"""Reading GGUF, the one-file format of llama.cpp and Ollama, with NumPy alone.

The file, all numbers little-endian::

    "GGUF", version (3), number of tensors, number of metadata entries
    metadata: key, type, value   (what the model is, and its whole tokenizer)
    tensors:  name, shape, type, offset
    zeros, up to a multiple of the alignment
    the tensors' bytes, each at its offset from here

Format: docs/gguf.md in the ggml repository; ``gguf_quants`` says how weights are packed.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llms_from_scratch.weights.gguf_quants import (
    OTHER_TYPES,
    TENSOR_TYPES,
    TensorType,
    dequantize,
)
from llms_from_scratch.weights.sources import TensorSource

# Type of a metadata value -> its letter, as struct and NumPy have it
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING = 8
ARRAY = 9
LEAST_METADATA = 8 + 4 + 1  # bytes of an entry with an empty key and a value of one byte
LEAST_TENSOR = 8 + 4 + 4 + 8  # bytes that describe a tensor without a name and dimensions
MAX_DIMENSIONS = 4
MAX_NESTING = 4  # arrays of arrays; real files have none
DAMAGED = "the file is truncated or damaged: get it again"


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    tensor_type: TensorType
    start: int
    num_bytes: int


class GGUFFile:
    """The metadata and the tensors of a GGUF file (version 2 or 3).

    ``metadata`` maps keys to numbers, strings and lists. ``shapes`` maps names to shapes in
    PyTorch's order: the last dimension is contiguous (the file lists it first). ``types`` maps
    names to "F32", "Q4_K" and so on. Tensors are read one at a time from the memory-mapped file.

    Raises ``FileNotFoundError``, and ``ValueError`` for a file that is not GGUF, is damaged, or has
    a tensor of a type that ``gguf_quants`` does not know.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            self._open()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _open(self) -> None:
        if self.path.stat().st_size == 0:
            raise ValueError("the file is empty: get it again")
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        cursor = _Cursor(self._bytes)
        num_tensors, num_metadata = _read_header(cursor)
        self.metadata = _read_metadata(cursor, num_metadata)
        self._entries = _read_entries(cursor, num_tensors, _alignment(self.metadata))
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.types = {name: entry.tensor_type.name for name, entry in self._entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor as float32: unpacked if it is quantised, exact if it is not."""
        if name not in self._entries:
            raise ValueError(f"{self.path} has no tensor {name!r}; its names are in .shapes")
        entry = self._entries[name]
        data = self._bytes[entry.start : entry.start + entry.num_bytes]
        weights = dequantize(data, entry.tensor_type).reshape(entry.shape)
        self._release(entry)
        return torch.from_numpy(weights)

    def _release(self, entry: _Entry) -> None:
        """Let the system drop the file's pages that were read: they would count as our memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
            length = entry.start + entry.num_bytes - start
            if length:
                self._bytes._mmap.madvise(mmap.MADV_DONTNEED, start, length)


def from_gguf(path: str | Path) -> TensorSource:
    """The tensors of a GGUF file under their names in it, such as "blk.0.attn_q.weight".

    Errors are those of ``GGUFFile``.
    """
    file = GGUFFile(path)
    return TensorSource(str(path), file.shapes, file.read)


def unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Put the rows of a Llama query or key projection back into the order of Meta and the hub.

    Rotary embeddings rotate pairs of a head's dimensions. Our code, like the hub's, pairs dimension
    ``i`` with ``i + head_dim / 2``: two halves. llama.cpp pairs neighbours, ``2 i`` with
    ``2 i + 1``, for models of the Llama family, so its converter moves the rows of each head:
    0, h, 1, h + 1, ... with ``h = head_dim / 2``. Without rotation the order would not matter, as
    queries and keys are moved alike and a dot product is a sum; with it, wrong dimensions would be
    rotated together, and the model would talk nonsense without any error.

    ``weight``: (num_heads * head_dim, ...), a matrix or a bias; the result has the same shape.
    For keys, ``num_heads`` is the number of key-value heads.

    >>> unpermute(torch.tensor([0, 2, 1, 3, 10, 12, 11, 13]), num_heads=2).tolist()
    [0, 1, 2, 3, 10, 11, 12, 13]
    """
    if num_heads < 1 or weight.shape[0] % (2 * num_heads):
        raise ValueError(
            f"{weight.shape[0]} rows are not num_heads={num_heads} heads with an even number of "
            "rows each: give the number of query heads for q, of key-value heads for k"
        )
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # (num_heads, head_dim/2, 2, ...)
    return pairs.transpose(1, 2).reshape(weight.shape)


class _Cursor:
    """Reads one value after the other, and never beyond the end of the data."""

    def __init__(self, data: np.ndarray):
        self.data = memoryview(data)
        self.position = 0

    def take(self, num_bytes: int) -> memoryview:
        start, self.position = self.position, self.position + num_bytes
        if self.position > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, too early: {DAMAGED}")
        return self.data[start : self.position]

    def number(self, number_format: str) -> int | float | bool:
        return struct.unpack(number_format, self.take(struct.calcsize(number_format)))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that need at least so many bytes each: they must fit in the file."""
        count = self.number("<Q")
        if count * least_bytes > len(self.data) - self.position:
            raise ValueError(f"{count:,} {what} do not fit in the file: {DAMAGED}")
        return count

    def string(self) -> str:
        try:
            return str(self.take(self.number("<Q")), "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"a text before byte {self.position} is no UTF-8: {DAMAGED}") from None

    def value(self, value_type: int, depth: int = 0):
        """A value of the metadata."""
        if value_type == STRING:
            return self.string()
        if value_type == ARRAY:
            return self.array(depth + 1)
        return self.number(self.number_format(value_type))

    def number_format(self, value_type: int) -> str:
        if value_type not in NUMBERS:
            raise ValueError(f"metadata have a value of the unknown type {value_type}: {DAMAGED}")
        return "<" + NUMBERS[value_type]

    def array(self, depth: int) -> list:
        if depth > MAX_NESTING:
            raise ValueError(f"metadata have arrays nested over {MAX_NESTING} deep: {DAMAGED}")
        value_type = self.number("<I")
        if value_type in (STRING, ARRAY):
            length = self.count("values of an array", 8 if value_type == STRING else 12)
            return [self.value(value_type, depth) for _ in range(length)]
        dtype = np.dtype(self.number_format(value_type))
        length = self.count("values of an array", dtype.itemsize)
        return np.frombuffer(self.take(length * dtype.itemsize), dtype).tolist()


def _read_header(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of metadata entries."""
    if bytes(cursor.data[:4]) != b"GGUF":
        raise ValueError("this is not a GGUF file: it does not begin with the letters GGUF")
    cursor.take(4)
    version = cursor.number("<I")
    if version not in (2, 3):
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
            raise ValueError("this GGUF file is big-endian: get the usual, little-endian one")
        raise ValueError(
            f"GGUF version {version} is unknown, only 2 and 3 can be read: get a newer conversion "
            "of the model, or convert it again"
        )
    num_tensors = cursor.count("tensors", LEAST_TENSOR)
    return num_tensors, cursor.count("metadata entries", LEAST_METADATA)


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict:
    metadata = {}
    for _ in range(num_entries):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"metadata have {key!r} twice: {DAMAGED}")
        metadata[key] = cursor.value(cursor.number("<I"))
    return metadata


def _alignment(metadata: dict) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two: {DAMAGED}")
    return alignment


def _read_entries(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, _Entry]:
    """What the file says of each tensor, checked against the length of the file."""
    described = {}
    for _ in range(num_tensors):
        name = cursor.string()
        if name in described:
            raise ValueError(f"there are two tensors {name!r}: {DAMAGED}")
        num_dimensions = cursor.number("<I")
        if num_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {num_dimensions} dimensions, over 4: {DAMAGED}")
        shape = tuple(cursor.number("<Q") for _ in range(num_dimensions))[::-1]
        described[name] = (shape, cursor.number("<I"), cursor.number("<Q"))
    data_start = -(-cursor.position // alignment) * alignment  # rounded up
    entries = {}
    for name, (shape, type_number, offset) in described.items():
        tensor_type = _find_type(name, type_number)
        num_bytes = _num_bytes(name, shape, tensor_type)
        start = data_start + offset
        if offset % alignment or start + num_bytes > len(cursor.data):
            raise ValueError(
                f"{name!r} should have {num_bytes:,} bytes from byte {start:,} on, but the file "
                f"has {len(cursor.data):,} and an alignment of {alignment}: {DAMAGED}"
            )
        entries[name] = _Entry(shape, tensor_type, start, num_bytes)
    return entries


def _find_type(name: str, number: int) -> TensorType:
    if number not in TENSOR_TYPES:
        readable = ", ".join(tensor_type.name for tensor_type in TENSOR_TYPES.values())
        raise ValueError(
            f"{name!r} is of type {number} ({OTHER_TYPES.get(number, 'unknown')}), which cannot be "
            f"read: get the model in one of {readable}"
        )
    return TENSOR_TYPES[number]


def _num_bytes(name: str, shape: tuple[int, ...], tensor_type: TensorType) -> int:
    row = shape[-1] if shape else 1
    if min(shape, default=1) < 1 or row % tensor_type.num_weights:
        raise ValueError(
            f"{name!r} has the shape {shape}, but {tensor_type.name} needs rows of a multiple of "
            f"{tensor_type.num_weights}: {DAMAGED}"
        )
    return math.prod(shape) // tensor_type.num_weights * tensor_type.num_bytes
