"""The modules for models with a cache, under each of their names: a small model generates there."""

import importlib

import pytest
import torch

from llms_from_scratch.kv_cache.cache import left_pad
from llms_from_scratch.kv_cache.streams import (
    generate_text_basic_stream,
    generate_text_cached_stream,
)

SHARED = {
    "vocab_size": 50,
    "context_length": 32,
    "emb_dim": 16,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 24,
    "n_kv_groups": 2,
    "rope_base": 1000.0,
    "dtype": torch.float32,
}
QWEN = SHARED | {"head_dim": 8, "qk_norm": True}
MOE = QWEN | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DOWNLOADS = ("download_from_huggingface", "download_from_huggingface_from_snapshots")
SIZES = ("06_B", "1_7B", "4B", "8B", "14B", "32B")
CONFIGS = [f"{'QWEN' if size == '06_B' else 'QWEN3'}_CONFIG_{size}" for size in SIZES]


def small(module: str, model: str, cfg: dict):
    torch.manual_seed(123)
    return getattr(importlib.import_module(f"llms_from_scratch.{module}"), model)(cfg)


def generated(folder: str, model, idx, **options) -> list[list[int]]:
    module = importlib.import_module(f"llms_from_scratch.{folder}.generate")
    return module.generate_text_simple(model, idx, 8, **options)[:, idx.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("module", "model", "cfg"),
    [
        ("kv_cache.llama3", "Llama3Model", SHARED | {"rope_freq": None}),
        ("kv_cache.qwen3", "Qwen3Model", QWEN),
        ("kv_cache.qwen3", "Qwen3Model", MOE),
        ("kv_cache_batched.qwen3", "Qwen3Model", QWEN),
        ("kv_cache_batched.qwen3", "Qwen3Model", MOE),
    ],
)
def test_each_path_generates_the_same_tokens_with_and_without_a_cache(module, model, cfg):
    model, idx = small(module, model, cfg), torch.tensor([[3, 1, 4], [1, 5, 9]])
    folder = module.partition(".")[0]
    expected = generated(folder, model, idx, use_cache=False)
    assert generated(folder, model, idx, use_cache=True) == expected
    assert generated(folder, model, idx, context_size=32) == expected
    model.reset_kv_cache()


@pytest.mark.parametrize("cfg", [QWEN, MOE], ids=["dense", "experts"])
def test_a_batch_of_unequal_prompts_gets_what_each_gets_alone(cfg):
    model = small("kv_cache_batched.qwen3", "Qwen3Model", cfg)
    prompts = [[3, 1, 4, 1, 5, 9], [2, 6], [5]]
    idx, lengths = left_pad(prompts, pad_id=0)
    alone = [generated("kv_cache_batched", model, torch.tensor([p]))[0] for p in prompts]
    assert generated("kv_cache_batched", model, idx, lengths=lengths) == alone


def test_modules_have_the_names_by_which_readers_import_them():
    names = {
        "kv_cache.qwen3": [*CONFIGS, "Qwen3Tokenizer", "KVCache", *DOWNLOADS],
        "kv_cache_batched.qwen3": [*CONFIGS, "Qwen3Tokenizer", "KVCache", *DOWNLOADS],
        "kv_cache.llama3": ["LLAMA32_CONFIG_1B", "LLAMA32_CONFIG_3B", "KVCache", "ChatFormat"],
        "kv_cache.generate": ["generate_text_simple_stream", "trim_input_tensor"],
        "kv_cache_batched.generate": ["generate_text_simple_stream", "trim_input_tensor"],
    }
    for module, wanted in names.items():
        module = importlib.import_module(f"llms_from_scratch.{module}")
        assert set(wanted) <= set(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_the_batched_cache_serves_a_model_step_by_step_and_shows_single_rows():
    from llms_from_scratch.kv_cache_batched.utils import KVCache

    model = small("kv_cache_batched.qwen3", "Qwen3Model", QWEN).eval()
    idx, cache = torch.randint(0, 50, (3, 6)), KVCache(n_layers=2, batch_size=3)
    with torch.no_grad():
        model(idx[:, :4], cache=cache, start_pos=torch.tensor([0, 0, 0]))
        logits = model(idx[:, 4:], cache=cache, start_pos=torch.tensor([4, 4, 4]))
        torch.testing.assert_close(logits, model(idx)[:, 4:])
        with pytest.raises(ValueError, match="start_pos is 5, but the cache has 6"):
            model(idx[:, :1], cache=cache, start_pos=5)
        with pytest.raises(ValueError, match="for 3 rows, got keys of 2"):
            model(idx[:2, :1], cache=cache)
    keys, values = cache.get(1, 2)
    assert keys.shape == values.shape == (1, 2, 6, 8)
    assert torch.equal(cache.get_layer(1)[0][2:], keys)
    with pytest.raises(ValueError, match="grow together"):
        cache.update(0, 1, (keys, values))
    cache.reset()
    assert cache.length == 0
    assert KVCache.for_model(model, batch_size=2).capacity == 32


def test_the_two_plain_streams_yield_the_same_tokens_and_end_at_eos():
    model, idx = small("qwen3", "Qwen3Model", QWEN), torch.tensor([[3, 1, 4]])
    plain = [int(t) for t in generate_text_basic_stream(model, idx, 10)]
    assert [int(t) for t in generate_text_cached_stream(model, idx, 10)] == plain
    assert len(plain) == 10
    for stream in (generate_text_basic_stream, generate_text_cached_stream):
        until = [int(t) for t in stream(model, idx, 10, eos_token_id=plain[4])]
        assert until == plain[: plain.index(plain[4])]
