"""Writing GGUF, the one-file format of llama.cpp and Ollama, with NumPy alone.

``gguf`` has the layout of the file, and reads it; here are the same parts in the same order, and
how weights are packed into 16 or 8 bits.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK = 32  # weights that share a scale in Q8_0
ALIGNMENT = 32  # bytes
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}  # the number of ``general.file_type``


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor to be written: its shape in PyTorch's order, how it is packed, and its numbers."""

    shape: tuple[int, ...]
    kind: str  # a key of PACK
    read: Callable[[], np.ndarray]  # float32


def pack_float16(weights: np.ndarray) -> np.ndarray:
    """Float32 as float16; ``ValueError`` for numbers beyond its 65,504."""
    with np.errstate(over="ignore"):
        packed = weights.astype("<f2")
    if not np.isfinite(packed).all():
        raise ValueError("it has numbers beyond 65,504, which F16 cannot hold: use F32")
    return packed


def pack_q8_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of 32 weights, each a scale of 16 bits and 32 integers of 8: (..., 32 n) -> bytes.

    The largest weight of a block becomes 127 or -127, the others are rounded to the nearest
    multiple of the scale, halves away from zero.

    >>> block = np.zeros(32, np.float32)
    >>> block[:3] = 127, -2.5, 0.4
    >>> pack_q8_0(block)[0, 2:5].view(np.int8).tolist()  # after the two bytes of the scale, 1.0
    [127, -3, 0]
    """
    blocks = weights.astype(np.float32, copy=False).reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)  # (n, 1)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
    scaled = blocks * inverse
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    integers = rounded.astype(np.int8).view(np.uint8)  # (n, 32)
    return np.concatenate([pack_float16(scale).view(np.uint8), integers], axis=1)  # (n, 34)


PACK: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {  # number in the file, packing
    "F32": (0, lambda weights: weights.astype("<f4", copy=False)),
    "F16": (1, pack_float16),
    "Q8_0": (8, pack_q8_0),
}


def packed_size(shape: tuple[int, ...], kind: str) -> int:
    """How many bytes a tensor takes.

    >>> packed_size((2, 64), "F16"), packed_size((2, 64), "Q8_0")
    (256, 136)
    """
    count = int(np.prod(shape))
    return count // BLOCK * (BLOCK + 2) if kind == "Q8_0" else count * (2 if kind == "F16" else 4)


def choose_kind(shape: tuple[int, ...], wanted: str) -> str:
    """How a tensor is packed in a file of a kind, as llama.cpp's converter does it.

    Vectors stay as they are, being few numbers of weight; rows that are no multiple of 32 cannot be
    cut into the blocks of Q8_0.

    >>> choose_kind((64,), "Q8_0"), choose_kind((2, 64), "Q8_0"), choose_kind((2, 40), "Q8_0")
    ('F32', 'Q8_0', 'F16')
    """
    if len(shape) == 1:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % BLOCK else wanted


def write_gguf(
    path: str | Path, metadata: Mapping[str, object], tensors: Mapping[str, GGUFTensor]
) -> None:
    """Write a GGUF file (version 3), one tensor in memory at a time.

    Values of ``metadata`` are numbers, truth values, texts, and lists of numbers or texts. Raises
    ``ValueError`` for others, and for weights that do not fit into their type.
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    entries = b"".join(_text(key) + _value(key, value) for key, value in metadata.items())
    descriptions, offset = b"", 0
    for name, tensor in tensors.items():
        descriptions += _description(name, tensor, offset)
        offset += _aligned(packed_size(tensor.shape, tensor.kind))
    with Path(path).open("wb") as file:
        file.write(header + entries + descriptions)
        _pad(file)
        for name, tensor in tensors.items():
            try:
                file.write(PACK[tensor.kind][1](tensor.read()).tobytes())
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from None
            _pad(file)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT  # rounded up


def _pad(file) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))


def _text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _description(name: str, tensor: GGUFTensor, offset: int) -> bytes:
    """Name, shape with the contiguous dimension first, type, and where the bytes lie."""
    dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
    return _text(name) + dimensions + struct.pack("<IQ", PACK[tensor.kind][0], offset)


def _value(key: str, value) -> bytes:
    """The type of a value, and the value."""
    if not isinstance(value, list):
        number, content = _scalar(key, value)
        return struct.pack("<I", number) + content
    if value and all(isinstance(element, int) for element in value):
        return struct.pack("<IIQ", 9, 5, len(value)) + np.array(value, "<i4").tobytes()
    scalars = [_scalar(key, element) for element in value]
    if not value or len({number for number, _ in scalars}) > 1:
        raise ValueError(f"{key} is {value!r:.60}: a list needs values, all of one type")
    contents = b"".join(content for _, content in scalars)
    return struct.pack("<IIQ", 9, scalars[0][0], len(value)) + contents


def _scalar(key: str, value) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _text(value)
    raise ValueError(f"{key} is {value!r:.60}: GGUF holds texts, numbers and lists of them")
