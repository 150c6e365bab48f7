"""Reading a TensorFlow checkpoint with NumPy alone.

OpenAI published GPT-2 as TensorFlow checkpoints. Such a checkpoint ("tensor bundle") is a data file
with the raw numbers of all tensors one after another, and an index that says which is where. The
index is a sorted table in the format of LevelDB; its values are small protocol buffers. About sixty
lines read both, so nobody has to install TensorFlow for it.

Format: tensorflow/core/util/tensor_bundle and leveldb/doc/table_format.md in their repositories.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TABLE_MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of every table
FOOTER_SIZE = 48
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 19: "<f2"}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the data file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes


class TFCheckpoint:
    """The tensors of a checkpoint ``prefix.index`` and ``prefix.data-00000-of-00001``.

    ``shapes`` maps each name to a shape; ``read(name)`` returns the tensor as a NumPy array. Raises
    ``FileNotFoundError`` if a file is missing and ``ValueError`` if one is damaged.
    """

    def __init__(self, prefix: str | Path):
        self.index_path = Path(f"{prefix}.index")
        self.data_path = Path(f"{prefix}.data-00000-of-00001")
        for path in (self.index_path, self.data_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: a TensorFlow checkpoint needs it")
        try:
            self.entries = dict(_read_index(self.index_path.read_bytes()))
        except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.index_path} is damaged: {error!r}") from error
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}
        end = max(entry.offset + entry.size for entry in self.entries.values())
        if self.data_path.stat().st_size != end:
            raise ValueError(
                f"{self.data_path} has {self.data_path.stat().st_size} bytes, its index says {end}"
            )

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        with self.data_path.open("rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
        return np.frombuffer(content, dtype=entry.dtype).reshape(entry.shape).copy()


def _read_index(table: bytes) -> Iterator[tuple[str, Entry]]:
    """All tensors that the index lists. Its footer points to a block of pointers to blocks."""
    if len(table) < FOOTER_SIZE or struct.unpack("<Q", table[-8:])[0] != TABLE_MAGIC:
        raise ValueError("this is not the index of a TensorFlow checkpoint")
    position = len(table) - FOOTER_SIZE
    _, position = _read_block_handle(table, position)  # statistics, unused
    (offset, size), _ = _read_block_handle(table, position)
    for _, handle in _read_block(table, offset, size):
        (block_offset, block_size), _ = _read_block_handle(handle, 0)
        for key, value in _read_block(table, block_offset, block_size):
            if key:  # the empty key holds a header
                yield key.decode(), _read_entry(value)


def _read_entry(value: bytes) -> Entry:
    """A protocol buffer with the fields 1: type, 2: shape, 3: shard, 4: offset, 5: size."""
    fields = _read_message(value)
    dimensions = _read_message(fields.get(2, [b""])[0]).get(2, [])
    shape = tuple(_read_message(dimension).get(1, [0])[0] for dimension in dimensions)
    if fields.get(3, [0])[0] != 0:
        raise ValueError("the checkpoint is split over several data files: not supported")
    dtype = np.dtype(DTYPES[fields[1][0]])
    entry = Entry(dtype, shape, fields.get(4, [0])[0], fields.get(5, [0])[0])
    if int(np.prod(shape)) * dtype.itemsize != entry.size:
        raise ValueError(f"a tensor of shape {shape} cannot have {entry.size} bytes")
    return entry


def _read_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block. A key repeats the start of the key before it only by length."""
    block, kind = table[offset : offset + size], table[offset + size]
    (checksum,) = struct.unpack_from("<I", table, offset + size + 1)
    if _masked_crc32c(block + bytes([kind])) != checksum:
        raise ValueError("the index is damaged: the checksum of a block is wrong")
    if kind != 0:
        raise ValueError("the index is compressed: not supported")
    (num_restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * num_restarts
    position, key = 0, b""
    while position < end:
        shared, position = _read_varint(block, position)
        rest, position = _read_varint(block, position)
        length, position = _read_varint(block, position)
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _masked_crc32c(data: bytes) -> int:
    """LevelDB's checksum: CRC-32 with Castagnoli's polynomial, rotated, plus a constant.

    >>> hex(_masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_block_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _read_varint(data, position)
    size, position = _read_varint(data, position)
    return (offset, size), position


def _read_message(data: bytes) -> dict[int, list]:
    """The fields of a protocol buffer: number -> values (integers, or bytes)."""
    fields: dict[int, list] = {}
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
        else:
            if wire_type == 2:
                length, position = _read_varint(data, position)
            else:
                length = {1: 8, 5: 4}[wire_type]
            value, position = data[position : position + length], position + length
        fields.setdefault(number, []).append(value)
    return fields


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, lowest first; the top bit of a byte says that more follow.

    >>> _read_varint(bytes([0b10101100, 0b00000010]), 0)
    (300, 2)
    """
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, position
