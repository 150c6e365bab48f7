"""How GGUF files pack weights into few bits, and how to unpack them with NumPy.

A quantised tensor is a row of blocks. Each block holds 32 (or 256) small integers and the scale
that turns them back into weights: with 4 bits, ``weight = scale * (integer - 8)``. So a weight
costs 4 bits plus its share of the scale (2 bytes per 32 weights): 4.5 bits instead of 32.

The types differ in how many bits an integer has and in what is stored beside it:

=====  ===========  =========================================================
type   bits/weight  a block
=====  ===========  =========================================================
Q8_0   8.5          32 integers, one scale
Q5_0   5.5          the same with 5 bits; the fifth bits lie in 4 bytes of their own
Q4_0   4.5          the same with 4 bits
Q4_1   5.0          scale and minimum: ``weight = scale * integer + minimum``
Q4_K   4.5          8 groups of 32, each with a 6-bit scale and a 6-bit minimum
Q5_K   5.5          the same with 5 bits
Q6_K   6.5625       16 groups of 16, each with an 8-bit scale
=====  ===========  =========================================================

In the K types ("super-blocks" of 256) the scales of the groups are small integers themselves, and
one 16-bit number scales those. Layout of the bits: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WEIGHTS_AT_ONCE = 1 << 17  # the intermediate results of so many stay in a CPU's cache


@dataclass(frozen=True)
class TensorType:
    """A way to store weights. ``unpack`` turns bytes (n, num_bytes) into (n, num_weights)."""

    name: str
    num_weights: int  # in one block
    num_bytes: int  # of one block
    unpack: Callable[[np.ndarray], np.ndarray]


def dequantize(data: np.ndarray, tensor_type: TensorType) -> np.ndarray:
    """All weights in ``data``, a contiguous uint8 array of whole blocks, as one float32 array.

    >>> block = np.float16([0.5]).tobytes() + bytes(range(32))  # a scale, then 32 integers
    >>> dequantize(np.frombuffer(block, np.uint8), TENSOR_TYPES[8])[:4]
    array([0. , 0.5, 1. , 1.5], dtype=float32)
    """
    blocks = data.reshape(-1, tensor_type.num_bytes)
    weights = np.empty((len(blocks), tensor_type.num_weights), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite scale is the file's business
        step = WEIGHTS_AT_ONCE // tensor_type.num_weights
        for start in range(0, len(blocks), step):
            some = slice(start, start + step)
            weights[some] = tensor_type.unpack(blocks[some])
    return weights.reshape(-1)


def _float16(blocks: np.ndarray, start: int) -> np.ndarray:
    """The 16-bit number at byte ``start`` of each block, as float32."""
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)  # (n, 1)


def _halves(packed: np.ndarray) -> np.ndarray:
    """Two 4-bit integers from each byte: first all lower halves, then all upper halves.

    >>> _halves(np.array([[0x1A, 0x2B]], np.uint8)).tolist()  # 0xA = 10, 0xB = 11
    [[10, 11, 1, 2]]
    """
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _float32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4")


def _bfloat16(blocks: np.ndarray) -> np.ndarray:
    """A bfloat16 is the upper half of a float32; its lower half is zero."""
    return (blocks.view("<u2").astype("<u4") << 16).view("<f4")


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks, 0) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks, 0) * (_halves(blocks[:, 2:]).astype(np.int8) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks, 0) * _halves(blocks[:, 4:]) + _float16(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    fifth_bits = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")  # (n, 32)
    integers = _halves(blocks[:, 6:]) | fifth_bits << 4
    return _float16(blocks, 0) * (integers.astype(np.int8) - 16)


def _group_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 6-bit scales and minima of 8 groups, (n, 8) each, from 12 bytes.

    The first four groups have a byte each for their scale and their minimum. The last four keep
    their lower 4 bits in the last four bytes, and their upper 2 bits where those bytes have room.
    """
    scales, minima, lower = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    last_scales = (lower & 0x0F) | (scales >> 6) << 4
    last_minima = (lower >> 4) | (minima >> 6) << 4
    return (
        np.concatenate([scales & 0x3F, last_scales], axis=-1),
        np.concatenate([minima & 0x3F, last_minima], axis=-1),
    )


def _scale_groups(blocks: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """Weights from the integers (n, 8, 32) of Q4_K or Q5_K."""
    scales, minima = _group_scales(blocks[:, 4:16])
    scales = (_float16(blocks, 0) * scales)[:, :, None]  # (n, 8, 1)
    minima = (_float16(blocks, 2) * minima)[:, :, None]
    return (scales * integers - minima).reshape(-1, 256)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    integers = _halves(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _scale_groups(blocks, integers)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    integers = _halves(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    bit_of_group = np.arange(8, dtype=np.uint8)[:, None]
    fifth_bits = blocks[:, None, 16:48] >> bit_of_group & 1  # (n, 8, 32)
    return _scale_groups(blocks, integers | fifth_bits << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    lower = _halves(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shift_of_group = np.array([0, 2, 4, 6], np.uint8)[:, None]
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift_of_group & 3  # (n, 2, 4, 32)
    integers = (lower | upper << 4).astype(np.int8) - 32
    scales = _float16(blocks, 208) * blocks[:, 192:208].view(np.int8)  # (n, 16)
    return (scales[:, :, None] * integers.reshape(-1, 16, 16)).reshape(-1, 256)


TENSOR_TYPES = {  # by the number that stands in the file
    0: TensorType("F32", 1, 4, _float32),
    1: TensorType("F16", 1, 2, lambda blocks: _float16(blocks, 0)),
    2: TensorType("Q4_0", 32, 18, _q4_0),
    3: TensorType("Q4_1", 32, 20, _q4_1),
    6: TensorType("Q5_0", 32, 22, _q5_0),
    8: TensorType("Q8_0", 32, 34, _q8_0),
    12: TensorType("Q4_K", 256, 144, _q4_k),
    13: TensorType("Q5_K", 256, 176, _q5_k),
    14: TensorType("Q6_K", 256, 210, _q6_k),
    30: TensorType("BF16", 1, 2, _bfloat16),
}

OTHER_TYPES = {  # that exist but are not read here, so that an error can name them
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
