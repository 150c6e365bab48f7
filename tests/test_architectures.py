"""Every architecture computes what ``transformers`` computes, with all parameters random."""

import pytest
import torch
from pairs import CASES, ids, pair_of

from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.kv_cache.generate import generate_text_simple


@pytest.fixture(params=CASES)
def pair(request):
    return pair_of(request.param)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair):
    theirs, ours = pair
    for n in (1, 4, 5, 6, 40):
        assert_close(ours(ids(2, n)), theirs(ids(2, n)).logits)


@torch.no_grad()
def test_pieces_and_single_tokens_past_the_window_equal_the_whole(pair):
    theirs, ours = pair
    whole = ids(2, 40)
    wanted = theirs(whole).logits
    for sizes in ([40], [1] * 40, [3, 1, 9, 1, 1, 25], [7, 7, 7, 7, 7, 5], [12] + [1] * 28):
        cache = KVCache.for_model(ours)
        pieces = [ours(piece, cache=cache) for piece in whole.split(sizes, dim=1)]
        assert_close(torch.cat(pieces, dim=1), wanted)


@torch.no_grad()
def test_rows_padded_on_the_left_get_the_logits_they_get_alone(pair):
    theirs, ours = pair
    whole, padding = ids(3, 30), torch.tensor([0, 11, 29])
    for sizes in ([30], [20] + [1] * 10, [10, 10, 10]):
        cache = KVCache(len(ours.trf_blocks))
        cache.reset(padding)
        logits = torch.cat([ours(x, cache=cache) for x in whole.split(sizes, dim=1)], dim=1)
        for row, alone, start in zip(logits, whole, padding.tolist(), strict=True):
            assert_close(row[start:], theirs(alone[None, start:]).logits[0])


@torch.no_grad()
def test_generation_equals_that_of_transformers(pair):
    theirs, ours = pair
    wanted = theirs.generate(ids(2, 7), max_new_tokens=30, do_sample=False, use_cache=False)
    assert torch.equal(generate_text_simple(ours, ids(2, 7), 30), wanted)


@torch.no_grad()
@pytest.mark.parametrize(
    "case",
    ["llama 3.1", "qwen3", "qwen3 moe", "gemma3", "olmo3, yarn", "tiny aya", "qwen3.5", "gemma4"],
)
def test_bfloat16_differs_by_rounding_only(case):
    theirs, ours = pair_of(case, torch.bfloat16)
    exact, _ = pair_of(case)
    exact.load_state_dict({k: v.float() for k, v in theirs.state_dict().items()})
    wanted = exact(ids(2, 30)).logits
    error = (ours(ids(2, 30)).float() - wanted).abs()
    peer = (theirs(ids(2, 30)).logits.float() - wanted).abs()
    assert error.mean() <= 1.3 * peer.mean() + 1e-3
    assert error.max() <= 2 * peer.max() + 1e-3
