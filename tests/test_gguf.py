"""GGUF files: every number as llama.cpp's own Python package reads it, and damage never passes."""

import random
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from llms_from_scratch.weights.gguf import GGUFFile, from_gguf, unpermute

# Bytes of a block at which a 16-bit scale or minimum begins
SCALES = {
    Type.Q8_0: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
PLAIN = (Type.F32, Type.F16, Type.BF16)


def random_rows(quant_type: Type, num_rows: int, blocks_per_row: int, seed: int = 0) -> np.ndarray:
    """Random bytes of a quantised tensor; only its scales are made finite numbers."""
    rng = np.random.default_rng(seed)
    _, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
    blocks = rng.integers(0, 256, (num_rows * blocks_per_row, block_bytes), dtype=np.uint8)
    for start in SCALES.get(quant_type, []):
        scale = np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)
        scale[~np.isfinite(scale)] = -0.37
        blocks[:, start : start + 2] = scale.view(np.uint8)
    return blocks.reshape(num_rows, blocks_per_row * block_bytes)


def write_gguf(path, tensors, metadata=None):
    """``tensors``: name -> (array, type or None); ``metadata``: key -> value for the writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, *value)
    for name, (array, quant_type) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=quant_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bits(array) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)


@pytest.fixture
def small_file(tmp_path):
    """One tensor of most types, and metadata of all kinds."""
    tensors = {
        "norm.weight": (np.linspace(-1, 1, 24, dtype=np.float32), None),
        "half": (np.linspace(-1, 1, 6, dtype=np.float16).reshape(2, 3), None),
    }
    for quant_type in SCALES:
        tensors[f"blk.0.{quant_type.name}"] = (random_rows(quant_type, 2, 1), quant_type)
    metadata = {
        "general.name": "small",
        "tokenizer.ggml.tokens": ["a", "Ġthe", "é", ""],
        "tokenizer.ggml.scores": [0.5, -1.25],
        "a.flag": True,
        "a.long": (2**40, gguf.GGUFValueType.UINT64),
        "a.negative": (-3, gguf.GGUFValueType.INT8),
        "a.double": (0.1, gguf.GGUFValueType.FLOAT64),
    }
    return write_gguf(tmp_path / "small.gguf", tensors, metadata)


@pytest.mark.parametrize("quant_type", SCALES, ids=lambda quant_type: quant_type.name)
def test_random_blocks_are_unpacked_bit_for_bit_as_gguf_does(tmp_path, quant_type):
    rows = random_rows(quant_type, num_rows=37, blocks_per_row=3)
    path = write_gguf(tmp_path / "a.gguf", {"w": (rows, quant_type)})
    file = GGUFFile(path)
    weights, per_block = file.read("w"), gguf.GGML_QUANT_SIZES[quant_type][0]
    assert file.types == {"w": quant_type.name}
    assert file.shapes == {"w": (37, 3 * per_block)} and weights.shape == (37, 3 * per_block)
    assert weights.dtype == torch.float32
    np.testing.assert_array_equal(bits(weights), bits(gguf.dequantize(rows, quant_type)))


def test_more_blocks_than_are_unpacked_at_once_are_bit_equal_too(tmp_path):
    rows = random_rows(Type.Q4_0, num_rows=3, blocks_per_row=2_000)
    path = write_gguf(tmp_path / "a.gguf", {"w": (rows, Type.Q4_0)})
    expected = gguf.dequantize(rows, Type.Q4_0)
    np.testing.assert_array_equal(bits(GGUFFile(path).read("w")), bits(expected))


@pytest.mark.parametrize("plain_type", PLAIN, ids=lambda plain_type: plain_type.name)
def test_every_16_bit_number_and_float32_are_exact(tmp_path, plain_type):
    pattern = np.arange(1 << 16, dtype=np.uint16)  # NaN, infinities and denormal numbers too
    data = {
        Type.F16: pattern.view(np.float16),
        Type.BF16: pattern.view(np.uint8),
        Type.F32: (pattern.astype(np.uint32) * 65537).view(np.float32),
    }[plain_type]
    raw_dtype = Type.BF16 if plain_type == Type.BF16 else None
    path = write_gguf(tmp_path / "a.gguf", {"w": (data, raw_dtype)})
    expected = gguf.dequantize(data, plain_type)
    got = GGUFFile(path).read("w").numpy()
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(bits(got)[numbers], bits(expected)[numbers])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_shapes_are_in_the_order_of_pytorch(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    file = GGUFFile(write_gguf(tmp_path / "a.gguf", {"w": (array, None)}))
    assert file.shapes == {"w": shape}
    assert torch.equal(file.read("w"), torch.from_numpy(array))


def test_metadata_are_those_that_gguf_reads(small_file):
    fields = gguf.GGUFReader(small_file).fields.items()
    expected = {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}
    assert GGUFFile(small_file).metadata == expected
    assert expected["tokenizer.ggml.tokens"] == ["a", "Ġthe", "é", ""]


def test_a_tensor_that_was_read_is_a_copy_that_may_be_changed(small_file):
    file = GGUFFile(small_file)
    before = small_file.read_bytes()
    first = file.read("norm.weight")
    first.add_(1.0)
    assert not torch.equal(first, file.read("norm.weight"))
    assert small_file.read_bytes() == before


def test_a_tensor_source_has_the_names_of_the_file(small_file):
    source = from_gguf(small_file)
    assert source.description == str(small_file)
    assert source.shapes["blk.0.Q4_K"] == (2, 256)
    assert source.read("blk.0.Q4_K").shape == (2, 256)
    with pytest.raises(ValueError, match="small.gguf has no tensor 'blk.9'"):
        source.read("blk.9")


def make_header(version=3, num_tensors=0, num_metadata=0, rest=b"", order="<") -> bytes:
    return b"GGUF" + struct.pack(order + "IQQ", version, num_tensors, num_metadata) + rest


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def describe(name=b"w", dimensions=(32,), type_number=0, offset=0) -> bytes:
    numbers = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + numbers + struct.pack("<IQ", type_number, offset)


NESTED = struct.pack("<IQ", 9, 1) * 2000
DAMAGE = {
    "empty": (b"", "the file is empty"),
    "another format": (b"PK\3\4" + bytes(100), "not a GGUF file"),
    "big-endian": (make_header(order=">"), "big-endian: get the usual"),
    "version 1": (make_header(version=1), "GGUF version 1 is unknown, only 2 and 3"),
    "version 4": (make_header(version=4), "GGUF version 4 is unknown"),
    "header cut": (make_header()[:15], "ends at byte 15, too early"),
    "absurd tensor count": (make_header(num_tensors=2**62), "tensors do not fit in the file"),
    "absurd metadata count": (make_header(num_metadata=2**63), "metadata entries do not fit"),
    "absurd text": (
        make_header(num_metadata=1, rest=struct.pack("<Q", 2**60) + bytes(50)),
        "too early: the file is truncated or damaged: get it again",
    ),
    "absurd array": (
        make_header(num_metadata=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)),
        "values of an array do not fit",
    ),
    "arrays in arrays": (
        make_header(num_metadata=1, rest=text(b"k") + struct.pack("<I", 9) + NESTED),
        "nested over 4 deep",
    ),
    "unknown metadata type": (
        make_header(num_metadata=1, rest=text(b"k") + struct.pack("<IQ", 77, 0)),
        "unknown type 77",
    ),
    "not UTF-8": (
        make_header(num_metadata=1, rest=text(b"\xff\xfe") + bytes(20)),
        "no UTF-8",
    ),
    "a key twice": (
        make_header(num_metadata=2, rest=2 * (text(b"k") + struct.pack("<IQ", 10, 0))),
        "metadata have 'k' twice",
    ),
    "alignment": (
        make_header(
            num_metadata=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(9)
        ),
        "general.alignment is 0, not a power of two",
    ),
    "a tensor twice": (
        make_header(num_tensors=2, rest=2 * describe() + bytes(500)),
        "two tensors 'w'",
    ),
    "five dimensions": (
        make_header(num_tensors=1, rest=describe(dimensions=(1,) * 5) + bytes(500)),
        "has 5 dimensions",
    ),
    "an empty dimension": (
        make_header(num_tensors=1, rest=describe(dimensions=(0, 2**63)) + bytes(500)),
        r"has the shape \(9223372036854775808, 0\)",
    ),
    "a broken block": (
        make_header(num_tensors=1, rest=describe(dimensions=(40,), type_number=8) + bytes(500)),
        "Q8_0 needs rows of a multiple of 32",
    ),
    "beyond the end": (
        make_header(num_tensors=1, rest=describe(offset=4096) + bytes(500)),
        "'w' should have 128 bytes from byte",
    ),
    "not aligned": (
        make_header(num_tensors=1, rest=describe(offset=3) + bytes(500)),
        "an alignment of 32",
    ),
    "overflowing size": (
        make_header(num_tensors=1, rest=describe(dimensions=(2**32, 2**32)) + bytes(500)),
        "should have 73,786,976,294,838,206,464 bytes",
    ),
    "a known type": (
        make_header(num_tensors=1, rest=describe(type_number=10) + bytes(500)),
        r"type 10 \(Q2_K\), which cannot be read: get the model in one of F32, F16",
    ),
    "an unknown type": (
        make_header(num_tensors=1, rest=describe(type_number=99) + bytes(500)),
        r"type 99 \(unknown\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_that_names_the_file(tmp_path, kind):
    content, message = DAMAGE[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        GGUFFile(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.gguf"):
        GGUFFile(tmp_path / "none.gguf")


def test_a_file_cut_anywhere_is_refused_when_it_is_opened(small_file):
    content = small_file.read_bytes()
    end = len(content.rstrip(b"\0")) - 1  # what follows is padding
    for length in [*range(0, end, 97), end]:
        small_file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="small.gguf: "):
            GGUFFile(small_file)


def test_random_damage_is_a_value_error_or_a_whole_reading(tmp_path, small_file):
    rng, content = random.Random(0), small_file.read_bytes()
    outcomes = {"refused": 0, "read": 0}
    tracemalloc.start()
    start = time.process_time()
    for trial in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            # Mostly in the header, the metadata and the list of tensors
            damaged[rng.randrange(rng.choice((24, 1000, len(content))))] = rng.randrange(256)
        if trial % 5 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        path = tmp_path / f"damaged-{trial}.gguf"
        path.write_bytes(damaged)
        try:
            file = GGUFFile(path)
            for name, shape in file.shapes.items():
                assert tuple(file.read(name).shape) == shape
            outcomes["read"] += 1
        except ValueError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(outcomes.values()) > 30, outcomes  # both happen
    assert peak < 5e6
    assert time.process_time() - start < 20


def llama_cpp_permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k (LlamaModel.permute)."""
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("num_heads,head_dim", [(1, 2), (3, 8), (9, 64)])
def test_unpermute_undoes_the_converter(num_heads, head_dim):
    torch.manual_seed(0)
    for shape in [(num_heads * head_dim, 10), (num_heads * head_dim,)]:
        weight = torch.randn(shape)
        permuted = torch.from_numpy(llama_cpp_permute(weight.numpy(), num_heads))
        assert torch.equal(unpermute(permuted, num_heads), weight)
        if head_dim > 2:
            assert not torch.equal(permuted, weight)


def test_unpermuted_rows_rotated_in_halves_are_neighbours_rotated_in_pairs():
    """The reason for it: both rotations give the same scores of queries and keys."""
    torch.manual_seed(0)
    num_heads, head_dim, emb_dim = 2, 6, 12
    query, key = torch.randn(2, num_heads * head_dim, emb_dim)  # as llama.cpp stores them
    x = torch.randn(2, emb_dim)  # two positions
    angles = torch.tensor([0.0, 1.0])[:, None] * torch.tensor([1.0, 0.3, 0.05])  # (2, head_dim/2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def rotate(left, right):
        return left * cos - right * sin, right * cos + left * sin

    def scores(w_query, w_key, split):
        q, k = (
            torch.cat(rotate(*split((x @ w.T).view(2, num_heads, head_dim))), dim=-1)
            for w in (w_query, w_key)
        )
        return torch.einsum("qhd,khd->hqk", q, k)

    neighbours = scores(query, key, lambda heads: (heads[..., 0::2], heads[..., 1::2]))
    w_query, w_key = unpermute(query, num_heads), unpermute(key, num_heads)
    halves = scores(w_query, w_key, lambda heads: heads.chunk(2, dim=-1))
    not_permuted = scores(query, key, lambda heads: heads.chunk(2, dim=-1))
    torch.testing.assert_close(halves, neighbours)
    assert (not_permuted - neighbours).abs().max() > 0.1


def test_unpermute_refuses_a_number_of_heads_that_does_not_fit():
    with pytest.raises(ValueError, match="10 rows are not num_heads=3 heads"):
        unpermute(torch.zeros(10, 4), num_heads=3)
    with pytest.raises(ValueError, match="num_heads=0"):
        unpermute(torch.zeros(10, 4), num_heads=0)


def test_smollm2_opens_at_once_and_is_bit_equal_to_gguf(smollm2_path):
    start = time.process_time()
    file = GGUFFile(smollm2_path)
    assert time.process_time() - start < 0.3
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49_152
    tensors = gguf.GGUFReader(smollm2_path).tensors
    assert len(tensors) == len(file.shapes) == 272
    for tensor in tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(bits(file.read(tensor.name)), bits(expected)), tensor.name
