"""A file of weights that was damaged on the disk is refused by name, wherever the damage is."""

import random
import re
import tracemalloc

import pytest
import torch

from llms_from_scratch.weights.sources import from_pth


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    tensors = {"wte.weight": torch.randn(40, 8), "bias": torch.randn(8).to(torch.bfloat16)}
    torch.save(tensors, tmp_path / "model.pth")
    return tmp_path / "model.pth", tensors


def test_a_flipped_byte_of_a_pth_file_is_refused_or_changes_no_weight(saved):
    path, tensors = saved
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            source = from_pth(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert source.shapes.keys() == tensors.keys()
        for name, tensor in tensors.items():  # what is left is padding
            assert source.read(name).equal(tensor)
    assert refused > 200


def test_each_byte_of_a_weight_is_covered(saved):
    path, tensors = saved
    whole = path.read_bytes()
    start = whole.index(tensors["wte.weight"].numpy().tobytes())
    for offset in range(0, 4 * 40 * 8, 7):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 0x80
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*checksum"):
            from_pth(path)


@pytest.mark.parametrize("size", [0, 10, 100, 1000, -1])
def test_a_cut_pth_file_is_refused(saved, size):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.pth cannot be read as a file of weights only"):
        from_pth(path)


def test_the_check_keeps_no_more_than_a_piece_of_the_file_in_memory(tmp_path):
    torch.save({"w": torch.zeros(20_000_000, dtype=torch.uint8)}, tmp_path / "model.pth")
    tracemalloc.start()
    from_pth(tmp_path / "model.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
