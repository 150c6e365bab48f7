"""The notebooks of Tiny Aya and Qwen3.5 as modules: the book's names, and transformers' logits."""

import pytest
import torch
import transformers
from repository import ROOT

from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.qwen3_5 import QWEN3_5_CONFIG
from llms_from_scratch.tiny_aya import TINY_AYA_CONFIG
from llms_from_scratch.utils import import_definitions_from_notebook

AYA = ("standalone-tiny-aya.ipynb", "standalone-tiny-aya-plus-kv-cache.ipynb")
QWEN = ("qwen3.5.ipynb", "qwen3.5-plus-kv-cache.ipynb")
PARTS = "FeedForward compute_rope_params apply_rope GroupedQueryAttention TransformerBlock".split()
AYA_NAMES = """
    CohereLayerNorm TinyAyaModel TinyAyaTokenizer apply_chat_template load_weights_into_tiny_aya
""".split()
QWEN_NAMES = "RMSNorm Qwen3_5Model Qwen3_5Tokenizer load_weights_into_qwen3_5".split()
CACHED = ["KVCache", "generate_text_basic_stream"]
SIZES = {
    "vocab_size": 257,
    "context_length": 128,
    "emb_dim": 32,
    "hidden_dim": 48,
    "n_heads": 4,
    "n_layers": 3,
    "head_dim": 8,
    "rope_base": 500.0,
    "dtype": torch.float32,
}
THEIR_SIZES = {
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "rms_norm_eps": 0.1,  # see test_architectures
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
WINDOWS = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "logit_scale": 0.25,
}


@pytest.fixture(scope="module")
def notebooks():
    folders = dict.fromkeys(AYA, "15_tiny-aya") | dict.fromkeys(QWEN, "16_qwen3.5")
    return {
        name: import_definitions_from_notebook(ROOT / "ch05" / folder, name)
        for name, folder in folders.items()
    }


def with_random_parameters(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def aya_config():
    return TINY_AYA_CONFIG | SIZES | WINDOWS | {"n_kv_heads": 2, "tie_word_embeddings": False}


def qwen_config():
    return QWEN3_5_CONFIG | SIZES | LINEAR | {"partial_rotary_factor": 0.5}


def pair_of(notebook, name):
    if name in AYA:
        config = transformers.Cohere2Config(**THEIR_SIZES, **WINDOWS, rope_parameters=ROPE)
        theirs = with_random_parameters(transformers.Cohere2ForCausalLM(config))
        ours = notebook.TinyAyaModel(aya_config())
        notebook.load_weights_into_tiny_aya(ours, ours.cfg, theirs.state_dict())
        return ours, theirs
    rope = ROPE | {"partial_rotary_factor": 0.5}
    config = transformers.Qwen3_5TextConfig(
        **THEIR_SIZES, **LINEAR, head_dim=8, rope_parameters=rope
    )
    theirs = with_random_parameters(transformers.Qwen3_5ForCausalLM(config))
    ours = notebook.Qwen3_5Model(qwen_config())
    notebook.load_weights_into_qwen3_5(ours, ours.cfg, theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (AYA[0], PARTS + AYA_NAMES),
        (AYA[1], PARTS + AYA_NAMES + CACHED),
        (QWEN[0], PARTS + QWEN_NAMES),
        (QWEN[1], PARTS + QWEN_NAMES + CACHED),
    ],
)
def test_readers_find_the_books_names_in_each_notebook(notebooks, name, wanted):
    assert [each for each in wanted if not hasattr(notebooks[name], each)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*AYA, *QWEN])
def test_a_notebooks_model_equals_transformers_whole_and_in_pieces(notebooks, name):
    torch.manual_seed(1)
    ours, theirs = pair_of(notebooks[name], name)
    ids = torch.randint(0, 257, (2, 80))
    with torch.no_grad():
        wanted = theirs(ids).logits
        torch.testing.assert_close(ours(ids), wanted, rtol=1e-5, atol=1e-5)
        for sizes in ([1] * 80, [2, 1, 77], [70] + [1] * 10):
            cache = KVCache.for_model(ours)
            logits = torch.cat([ours(piece, cache=cache) for piece in ids.split(sizes, 1)], dim=1)
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [AYA[1], QWEN[1]])
def test_a_notebooks_stream_gives_one_token_of_each_row_at_a_time(notebooks, name):
    notebook = notebooks[name]
    model = (
        notebook.TinyAyaModel(aya_config()) if name in AYA else notebook.Qwen3_5Model(qwen_config())
    )
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    tokens = list(notebook.generate_text_basic_stream(model, prompt, max_new_tokens=12))
    assert [tuple(token.shape) for token in tokens] == [(2, 1)] * 12
