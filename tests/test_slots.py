"""Texts join and leave one cache, and each gets the logits that it would get alone."""

import random

import pytest
import torch

from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.kv_cache.cache import KVCache
from llms_from_scratch.kv_cache.optimized import with_cache
from llms_from_scratch.kv_cache.slots import SlotCache
from llms_from_scratch.qwen3 import Qwen3Model

SMALL = {"vocab_size": 53, "context_length": 48, "emb_dim": 32, "n_heads": 4, "n_layers": 4}


def gpt():
    cfg = SMALL | {"drop_rate": 0.0, "qkv_bias": True}
    return with_cache(GPTModel(cfg))


def qwen3():
    cfg = SMALL | {"hidden_dim": 48, "head_dim": 16, "n_kv_groups": 2, "qk_norm": True}
    return Qwen3Model(cfg | {"rope_base": 10_000.0, "dtype": torch.float32})


def gemma3():
    cfg = SMALL | {"hidden_dim": 48, "head_dim": 16, "n_kv_groups": 1, "qk_norm": True}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    ropes = {"rope_local_base": 10_000.0, "rope_base": 1_000_000.0}
    window = {"sliding_window": 5, "layer_types": kinds, "query_pre_attn_scalar": 16}
    return Gemma3Model(cfg | ropes | window | {"dtype": torch.float32})


@pytest.fixture(params=[gpt, qwen3, gemma3], ids=lambda make: make.__name__)
def model(request):
    torch.manual_seed(5)
    return request.param().eval()


def prefill(model, ids) -> KVCache:
    cache = KVCache.for_model(model, len(ids))
    model(torch.tensor([ids]), cache=cache)
    return cache


@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_each_row_has_the_logits_of_its_text_alone_whoever_joins_and_leaves(model, seed):
    rng = random.Random(seed)
    cache, texts = SlotCache.for_model(model, 4), []
    compared = 0
    for _ in range(150):
        action = rng.random()
        if action < 0.3 and len(texts) < 4:
            ids = [rng.randrange(53) for _ in range(rng.randrange(1, 30))]
            cache.join(prefill(model, ids))
            texts.append(ids)
        elif texts and (action < 0.4 or max(map(len, texts)) == 48):
            longest = max(range(len(texts)), key=lambda row: len(texts[row]))
            row = rng.randrange(len(texts)) if action < 0.4 else longest
            cache.leave(row)
            last = texts.pop()
            if row < len(texts):
                texts[row] = last
        elif texts:
            new = [rng.randrange(53) for _ in texts]
            logits = model(torch.tensor(new)[:, None], cache=cache, last_only=True)[:, -1]
            texts = [[*ids, token_id] for ids, token_id in zip(texts, new, strict=True)]
            for ids, row in zip(texts, logits, strict=True):
                torch.testing.assert_close(row, model(torch.tensor([ids]))[0, -1])
                compared += 1
    assert compared > 100


@torch.inference_mode()
def test_what_texts_that_left_had_is_used_again(model):
    cache = SlotCache.for_model(model, 2)
    most = 0
    for turn in range(20):
        cache.join(prefill(model, [turn, 1, 2, 3]))
        for _ in range(6):
            model(torch.tensor([[7]] * cache.rows), cache=cache)
        if cache.rows == 2:
            cache.leave(0)
        most = max(most, cache.nbytes) if turn < 5 else most
    assert cache.nbytes <= most
    cache.leave(0)
    assert cache.nbytes == 0


def test_a_full_cache_and_a_row_that_is_not_there_are_refused(model):
    cache = SlotCache.for_model(model, 1)
    with torch.inference_mode():
        cache.join(prefill(model, [1, 2]))
        with pytest.raises(ValueError, match="all 1 slots are taken"):
            cache.join(prefill(model, [1, 2]))
        with pytest.raises(ValueError, match="no row 1 of 1"):
            cache.leave(1)
    with pytest.raises(ValueError, match="slots must be at least 1"):
        SlotCache.for_model(model, 0)


class Recurrent(torch.nn.Module):
    """Layers that keep a state in place of keys: a running sum of embeddings, (b, 1, 3)."""

    cfg = {"context_length": 20}
    windows = [None]

    def __init__(self):
        super().__init__()
        self.trf_blocks = torch.nn.ModuleList([torch.nn.Identity()])
        self.tok_emb = torch.nn.Embedding(9, 3)

    def forward(self, ids, cache):
        cache.open_for(self, ids.shape[1])
        state = cache.get(0)
        x = self.tok_emb(ids).sum(1, keepdim=True)
        total = cache.update(0, x if state is None else state + x)
        cache.advance(ids.shape[1])
        return total


@torch.inference_mode()
def test_a_layers_own_state_joins_and_leaves_with_its_text():
    model = Recurrent()
    cache = SlotCache.for_model(model, 3)
    for ids in ([1, 2], [3], [4, 5, 6]):
        cache.join(prefill(model, ids))
    cache.leave(0)  # [4, 5, 6] takes its row
    total = model(torch.tensor([[7], [8]]), cache)
    expected = [model.tok_emb(torch.tensor(ids)).sum(0) for ids in ([4, 5, 6, 7], [3, 8])]
    torch.testing.assert_close(total[:, 0], torch.stack(expected))
