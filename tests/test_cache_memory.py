"""Estimators of chapter 4's variants: the bytes of real caches, published shapes, clear errors."""

import re
from pathlib import Path

import pytest
import torch
from scripts import run_script

from llms_from_scratch import cache_memory
from llms_from_scratch.blocks.delta_rule import GatedDeltaNet
from llms_from_scratch.blocks.latent_attention import LatentAttention
from llms_from_scratch.cache_memory import PUBLISHED, CacheShape, published_shape
from llms_from_scratch.gemma3 import GEMMA3_CONFIG_270M
from llms_from_scratch.gpt_variants import (
    GPTWithDeltaNet,
    GPTWithGQA,
    GPTWithMHA,
    GPTWithMLA,
    GPTWithSWA,
    MultiHeadAttentionWithSWA,
)
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.llama3 import (
    LLAMA31_CONFIG_8B,
    LLAMA32_CONFIG_1B,
    LLAMA32_CONFIG_3B,
    SMOLLM2_CONFIG_135M,
)
from llms_from_scratch.olmo3 import OLMO3_CONFIG_7B, OLMO3_CONFIG_32B
from llms_from_scratch.qwen3 import (
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_30B_A3B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "vocab_size": 97,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 4,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.inference_mode()
def measured(model, length, b=1):
    cache = KVCache.for_model(model, capacity=length)
    model(torch.zeros(b, length, dtype=torch.long), cache=cache)
    return cache.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 3, 8, 9, 40, 64])
@pytest.mark.parametrize(
    ("cls", "changes", "shape"),
    [
        (GPTWithMHA, {}, CacheShape(4, 4, 4, 8)),
        (GPTWithGQA, {"n_kv_groups": 2}, CacheShape(4, 4, 2, 8)),
        (GPTWithMLA, {"latent_dim": 12}, CacheShape(4, 4, 4, 8, latent_dim=12)),
        (
            GPTWithSWA,
            {"sliding_window_size": 4, "sliding_window_stride": 2},
            CacheShape(4, 4, 4, 8, 4, 3),
        ),
        (
            GPTWithDeltaNet,
            {"full_attention_every": 4},
            CacheShape(
                4,
                4,
                4,
                8,
                delta_layers=3,
                delta_key_heads=4,
                delta_value_heads=4,
                delta_head_dim=8,
            ),
        ),
    ],
    ids=["mha", "gqa", "mla", "swa", "deltanet"],
)
def test_estimates_are_the_bytes_of_real_caches(cls, changes, shape, length, dtype):
    model = cls(CONFIG | changes).to(DTYPES[dtype]).eval()
    for b in (1, 3):
        assert shape.total_bytes(length, dtype, b, allocated=True) == measured(model, length, b)


@torch.no_grad()
def test_a_window_keeps_the_bytes_that_are_said():
    att = MultiHeadAttentionWithSWA(32, 32, 0.0, 4, sliding_window_size=8)
    shape = CacheShape(1, 4, 4, 8, 8, 1)
    for length in (5, 8, 30):
        att.reset_cache()
        att(torch.randn(1, length, 32), use_cache=True)
        kept = att.cache_k.numel() * 4 + att.cache_v.numel() * 4
        assert kept == shape.total_bytes(length, "fp32")
        per_layer = cache_memory.calc_kv_bytes_per_layer(1, min(length, 8), 8, 4, 4)
        assert kept == per_layer


@torch.no_grad()
def test_layers_as_published_take_what_is_said():
    latent = published_shape("deepseek-v3")
    mla, cache = LatentAttention(16, 2, latent.latent_dim, 8, rope_dim=64), KVCache(1, 10)
    mla(torch.randn(1, 10, 16), cache=cache)
    assert cache.nbytes * latent.n_layers == latent.total_bytes(10, "fp32")
    delta = published_shape("qwen3-next-80b-a3b")
    layer, cache = GatedDeltaNet(16, 16, 32, 128, 128), KVCache(1, 10)
    layer(torch.randn(1, 10, 16), cache=cache)
    assert cache.nbytes == delta.delta_bytes(4)


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("smollm2-135m", SMOLLM2_CONFIG_135M),
        ("llama-3.1-8b", LLAMA31_CONFIG_8B),
        ("llama-3.2-1b", LLAMA32_CONFIG_1B),
        ("llama-3.2-3b", LLAMA32_CONFIG_3B),
        ("qwen3-0.6b", QWEN_CONFIG_06_B),
        ("qwen3-4b", QWEN3_CONFIG_4B),
        ("qwen3-32b", QWEN3_CONFIG_32B),
        ("qwen3-30b-a3b", QWEN3_CONFIG_30B_A3B),
        ("gemma-3-270m", GEMMA3_CONFIG_270M),
        ("olmo-3-7b", OLMO3_CONFIG_7B),
        ("olmo-3-32b", OLMO3_CONFIG_32B),
    ],
)
def test_published_shapes_are_those_of_the_configurations(name, cfg):
    types = cfg.get("layer_types", [])
    windowed = types.count("sliding_attention")
    wanted = CacheShape(
        cfg["n_layers"],
        cfg["n_heads"],
        cfg.get("n_kv_groups") or cfg["n_kv_heads"],
        cfg.get("head_dim") or cfg["emb_dim"] // cfg["n_heads"],
        cfg["sliding_window"] if windowed else None,
        windowed,
    )
    assert PUBLISHED[name] == wanted


def run(script, *options):
    return run_script(ROOT / "ch04" / script, *options, cwd=ROOT)


SIZES = ("--context_length", 32768, "--emb_dim", 4096, "--n_heads", 32, "--n_layers", 32)
MLA = ("--context_length", 8192, "--emb_dim", 2048, "--n_heads", 24, "--n_layers", 48)


@pytest.mark.parametrize(
    ("script", "options", "figures"),
    [
        (
            "04_gqa/memory_estimator_gqa.py",
            (*SIZES, "--n_kv_groups", 8, "--dtype", "bf16"),
            ["17.18 GB", "4.29 GB", "4.00x", "75.00%"],
        ),
        (
            "05_mla/memory_estimator_mla.py",
            (*MLA, "--n_kv_groups", 6, "--latent_dim", 1024, "--dtype", "bf16"),
            ["3.25 GB", "0.81 GB", "4.00x", "4.03x", "75.19%", "86"],
        ),
        (
            "06_swa/memory_estimator_swa.py",
            (*SIZES, "--group_size", 4, "--sliding_window_size", 1024, "--swa_ratio", "5:1"),
            ["17.18 GB", "4.29 GB", "3.14 GB", "0.78 GB", "27"],
        ),
        (
            "07_moe/memory_estimator_moe.py",
            ("--emb_dim", 7168, "--hidden_dim", 14336, "--match_dense"),
            ["308,281,344", "0.62 GB", "38,535,168", "57,344", "308,338,688", "77,127,680", "1792"],
        ),
        ("05_mla/memory_estimator_mla.py", ("--model", "list"), ["deepseek-v3", "9.21 GB"]),
        ("06_swa/memory_estimator_swa.py", ("--model", "gemma-3-270m"), ["512", "15"]),
    ],
)
def test_estimators_print_the_figures_of_the_book_and_of_published_models(script, options, figures):
    done = run(script, *options)
    assert done.returncode == 0, done.stderr
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d])", done.stdout), figure


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("04_gqa/memory_estimator_gqa.py", (*SIZES, "--n_kv_groups", 5), "no multiple of"),
        ("04_gqa/memory_estimator_gqa.py", SIZES, "--n_kv_groups or --group_size"),
        ("04_gqa/memory_estimator_gqa.py", ("--emb_dim", 8), "missing: --n_heads"),
        ("04_gqa/memory_estimator_gqa.py", ("--model", "gpt9"), "no model named 'gpt9'"),
        (
            "04_gqa/memory_estimator_gqa.py",
            (*SIZES, "--n_kv_groups", 8, "--batch_size", 0),
            "--batch_size must be at least 1, got 0",
        ),
        (
            "06_swa/memory_estimator_swa.py",
            (*SIZES, "--n_kv_groups", 8, "--sliding_window_size", 4, "--swa_ratio", "5"),
            "got '5'",
        ),
        (
            "07_moe/memory_estimator_moe.py",
            ("--emb_dim", 8, "--hidden_dim", 4, "--match_dense"),
            "too many for hidden_dim 4",
        ),
        ("04_gqa/plot_memory_estimates_gqa.py", ("--output", "x.abc"), ".pdf, .svg or .png"),
        ("04_gqa/plot_memory_estimates_gqa.py", ("--output", "none/x.png"), "no folder none"),
        (
            "08_deltanet/plot_memory_estimates_gated_deltanet.py",
            ("--max_ctx", 100),
            "must be more than --min_ctx 128",
        ),
        ("04_gqa/gpt_with_kv_gqa.py", ("--n_kv_groups", 5), "multiple of num_kv_groups"),
        ("08_deltanet/gpt_with_kv_deltanet.py", ("--prompt", ""), "--prompt is empty"),
    ],
)
def test_wrong_options_get_one_line_and_exit_code_2(script, options, message):
    done = run(script, *options)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("04_gqa/plot_memory_estimates_gqa.py", ()),
        ("05_mla/plot_memory_estimates_mla.py", ()),
        (
            "06_swa/plot_memory_estimates_swa.py",
            "--emb_dim 64 --n_heads 6 --n_layers 5 --sliding_window_size 1024".split(),
        ),
        ("08_deltanet/plot_memory_estimates_gated_deltanet.py", ()),
    ],
)
def test_plots_are_written_where_they_are_wanted(script, options, tmp_path):
    done = run(script, *options, "--output", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_windows_never_take_more_than_no_windows():
    for length in (256, 1024, 4096):
        totals = cache_memory.estimate_totals(length, 1024, 64, 4, 6, 2, 1, "bf16", "5:1")
        assert totals["total_mixed_mha"] <= totals["total_mha_allfull"]
        assert totals["eff_W"] == min(length, 1024)


@pytest.mark.parametrize(
    ("layers", "ratio", "wanted"),
    [(32, "5:1", (27, 5)), (7, "1:0", (7, 0)), (7, "0:1", (0, 7)), (6, "2:2", (4, 2))],
)
def test_layers_take_turns(layers, ratio, wanted):
    a, b = cache_memory.parse_ratio(ratio)
    assert cache_memory.distribute_layers(layers, a, b) == wanted


@pytest.mark.parametrize("ratio", ["", "5", "5:", "a:b", "0:0", "-1:2", "1:2:3"])
def test_ratios_that_are_none_are_named(ratio):
    with pytest.raises(ValueError, match=re.escape(repr(ratio))):
        cache_memory.parse_ratio(ratio)
