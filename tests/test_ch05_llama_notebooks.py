"""The notebooks on Llama and Qwen3: the names readers import from them, and that those compute."""

import ast
import functools
import inspect
import json

import pytest
import torch
from repository import ROOT

from llms_from_scratch.utils import import_definitions_from_notebook
from llms_from_scratch.weights.mapping import their_name

LLAMA = ROOT / "ch05" / "07_gpt_to_llama"
OTHERS = ROOT / "ch05" / "14_ch05_with_other_llms"
NAMES = {
    LLAMA / "converting-gpt-to-llama2.ipynb": (
        "RMSNorm SiLU FeedForward precompute_rope_params compute_rope MultiHeadAttention "
        "TransformerBlock Llama2Model calc_model_memory_size LlamaTokenizer generate "
        "text_to_token_ids token_ids_to_text load_weights_into_llama"
    ),
    LLAMA / "converting-llama2-to-llama3.ipynb": (
        "precompute_rope_params compute_rope GroupedQueryAttention TransformerBlock Llama3Model "
        "count_unique_parameters calc_model_memory_size Llama3Tokenizer ChatFormat clean_text "
        "load_weights_into_llama"
    ),
    LLAMA / "standalone-llama32.ipynb": (
        "FeedForward compute_rope_params apply_rope GroupedQueryAttention TransformerBlock "
        "Llama3Model calc_model_memory_size Tokenizer ChatFormat load_weights_into_llama "
        "count_unique_parameters generate text_to_token_ids token_ids_to_text clean_text"
    ),
    OTHERS / "ch05-llama32.ipynb": (
        "GPTDatasetV1 Llama3Model calc_loss_batch evaluate_model generate_text_simple"
    ),
    OTHERS / "ch05-qwen3.ipynb": (
        "GPTDatasetV1 GroupedQueryAttention Qwen3Model calc_loss_batch evaluate_model "
        "generate_text_simple"
    ),
}
COMMON = {"vocab_size": 257, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64}
COMMON |= {"dtype": torch.float32}
LLAMA3 = COMMON | {"context_length": 64, "n_kv_groups": 2, "rope_base": 500_000.0}
LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 |= {"original_context_length": 8192}


@functools.cache
def notebook_module(stem: str):
    return import_definitions_from_notebook(next(path for path in NAMES if path.stem == stem))


@pytest.mark.parametrize("path", NAMES, ids=lambda path: path.stem)
def test_the_names_that_readers_import_are_there(path):
    module = notebook_module(path.stem)
    assert [name for name in NAMES[path].split() if not hasattr(module, name)] == []


def random_checkpoint(model, names):
    """All tensors random, norms too, under the names of a file."""
    torch.manual_seed(123)
    return {
        their_name(name, names): torch.randn(parameter.shape)
        for name, parameter in model.named_parameters()
    }


def test_parts_agree_with_pytorch():
    module = notebook_module("converting-gpt-to-llama2")
    torch.manual_seed(123)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(module.SiLU()(x), torch.nn.functional.silu(x))
    norm, expected = module.RMSNorm(emb_dim=4, eps=1e-5), torch.nn.RMSNorm(4, eps=1e-5)
    with torch.no_grad():
        expected.weight.copy_(norm.weight.copy_(torch.randn(4)))
    torch.testing.assert_close(norm(x), expected(x))


@pytest.mark.parametrize("freq_config", [None, LLAMA31])
@pytest.mark.parametrize("stem", ["converting-gpt-to-llama2", "converting-llama2-to-llama3"])
def test_rotations_agree_with_complex_numbers(stem, freq_config):
    module = notebook_module(stem)
    cos, sin = module.precompute_rope_params(
        head_dim=16, theta_base=500_000, context_length=10, freq_config=freq_config
    )
    assert cos.shape == sin.shape == (10, 16)
    torch.manual_seed(123)
    x = torch.randn(2, 4, 10, 16)
    turn = torch.complex(cos[:, :8], sin[:, :8])
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(module.compute_rope(x, cos, sin), expected)


def test_metas_weights_load_by_the_notebooks_own_function():
    from llms_from_scratch import llama2

    module = notebook_module("converting-gpt-to-llama2")
    cfg = COMMON | {"context_length": 64}
    ids = torch.randint(257, (2, 8))
    ours, packages = module.Llama2Model(cfg), llama2.Llama2Model(cfg)
    checkpoint = random_checkpoint(ours, llama2.META_NAMES)
    module.load_weights_into_llama(ours, {"n_layers": 2, "hidden_dim": 64}, checkpoint)
    llama2.load_weights_into_llama(packages, cfg, checkpoint)
    torch.testing.assert_close(ours(ids), packages(ids))
    with pytest.raises(ValueError, match="missing"):
        module.load_weights_into_llama(ours, cfg, {"tok_embeddings.weight": torch.zeros(257, 32)})


@pytest.mark.parametrize("stem", ["converting-llama2-to-llama3", "standalone-llama32"])
def test_hub_weights_load_into_the_notebooks_model_as_into_the_packages(stem):
    from llms_from_scratch import llama3

    module = notebook_module(stem)
    cfg = LLAMA3 | {"rope_freq": LLAMA31}
    ids = torch.randint(257, (2, 8))
    ours, packages = module.Llama3Model(cfg), llama3.Llama3Model(cfg)
    checkpoint = random_checkpoint(ours, llama3.NAMES)
    module.load_weights_into_llama(ours, {"n_layers": 2, "hidden_dim": 64}, checkpoint)
    llama3.load_weights_into_llama(packages, cfg, checkpoint)
    torch.testing.assert_close(ours(ids), packages(ids))

    del checkpoint["lm_head.weight"]
    module.load_weights_into_llama(ours, cfg, checkpoint)
    assert ours.out_head.weight is ours.tok_emb.weight


def test_previous_chapters_has_the_books_import_line():
    tree = ast.parse((LLAMA / "previous_chapters.py").read_text(encoding="utf-8"))
    imported = {
        a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert imported == {"generate", "text_to_token_ids", "token_ids_to_text"}


def test_no_file_of_the_folder_has_a_place_for_a_token():
    settings = json.loads((LLAMA / "config.json").read_text(encoding="utf-8"))
    assert "HF_TOKEN" in settings.pop("_comment")
    assert set(settings) == {"repo_id", "local_dir"}


def test_arguments_have_the_books_names():
    module = notebook_module("standalone-llama32")
    rope = inspect.signature(module.compute_rope_params).parameters
    assert list(rope) == ["head_dim", "theta_base", "context_length", "freq_config", "dtype"]
    attention = inspect.signature(module.GroupedQueryAttention).parameters
    assert list(attention) == ["d_in", "d_out", "num_heads", "num_kv_groups", "dtype"]
