"""The notebooks of Tiny Aya, Qwen3.5 and Gemma 4 as modules: names, and transformers' logits."""

import nbformat
import pytest
import torch
import transformers
import what_changed
from repository import ROOT

from llms_from_scratch.gemma4 import GEMMA4_CONFIG_E2B
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.qwen3_5 import QWEN3_5_CONFIG
from llms_from_scratch.tiny_aya import TINY_AYA_CONFIG
from llms_from_scratch.utils import import_definitions_from_notebook

AYA = ("standalone-tiny-aya.ipynb", "standalone-tiny-aya-plus-kv-cache.ipynb")
QWEN = ("qwen3.5.ipynb", "qwen3.5-plus-kv-cache.ipynb")
GEMMA = ("standalone-gemma4.ipynb", "standalone-gemma4-plus-kvcache.ipynb")
PARTS = "FeedForward compute_rope_params apply_rope GroupedQueryAttention TransformerBlock".split()
AYA_NAMES = """
    CohereLayerNorm TinyAyaModel TinyAyaTokenizer apply_chat_template load_weights_into_tiny_aya
""".split()
QWEN_NAMES = "RMSNorm Qwen3_5Model Qwen3_5Tokenizer load_weights_into_qwen3_5".split()
GEMMA_NAMES = """
    Gemma4Attention Gemma4DenseBlock Gemma4DenseModel Gemma4FeedForward Gemma4RMSNorm GemmaTokenizer
    apply_rope compute_rope_params generate_text_basic_stream get_gemma4_dense_config
    load_weights_into_gemma4_dense resolve_local_model_dir
""".split()
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
SHARING = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 4,
    "num_kv_shared_layers": 1,
    "global_head_dim": 12,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 257,
    "use_double_wide_mlp": True,
}


@pytest.fixture(scope="module")
def notebooks():
    folders = dict.fromkeys(AYA, "15_tiny-aya") | dict.fromkeys(QWEN, "16_qwen3.5")
    folders |= dict.fromkeys(GEMMA, "17_gemma4")
    return {
        name: import_definitions_from_notebook(ROOT / "ch05" / folder, name)
        for name, folder in folders.items()
    }


def with_random_parameters(model):
    with torch.no_grad():
        kept = model.state_dict(keep_vars=True)
        for tensor in {id(t): t for t in kept.values()}.values():  # buffers that are kept, too
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model.eval()


def aya_config():
    return TINY_AYA_CONFIG | SIZES | WINDOWS | {"n_kv_heads": 2, "tie_word_embeddings": False}


def qwen_config():
    return QWEN3_5_CONFIG | SIZES | LINEAR | {"partial_rotary_factor": 0.5}


def gemma_config():
    rope = {"rope_local_base": 500.0, "rope_global_base": 500.0}
    rest = {"layer_norm_eps": 0.3, "n_kv_heads": 2, "tie_word_embeddings": False}
    sizes = {key: value for key, value in SIZES.items() if key != "rope_base"}
    return GEMMA4_CONFIG_E2B | sizes | SHARING | rope | rest


def small_model(notebook, name):
    if name in AYA:
        return notebook.TinyAyaModel(aya_config())
    if name in QWEN:
        return notebook.Qwen3_5Model(qwen_config())
    return notebook.Gemma4DenseModel(gemma_config())


def gemma_pair(notebook):
    full = ROPE | {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    config = transformers.Gemma4TextConfig(
        **THEIR_SIZES,
        **SHARING,
        head_dim=8,
        rms_norm_eps=0.3,  # see test_architectures
        final_logit_softcapping=30.0,
        rope_parameters={"sliding_attention": ROPE, "full_attention": full},
    )
    theirs = with_random_parameters(transformers.Gemma4ForCausalLM(config))
    ours = notebook.Gemma4DenseModel(gemma_config()).eval()
    tensors = theirs.state_dict()
    prefixed = {k.replace("model.", "model.language_model.", 1): t for k, t in tensors.items()}
    count = notebook.load_weights_into_gemma4_dense(ours, ours.cfg, prefixed)
    assert count == len(tensors)
    return ours, theirs


def pair_of(notebook, name):
    if name in GEMMA:
        return gemma_pair(notebook)
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
        (GEMMA[0], [*GEMMA_NAMES, "repeat_kv"]),
        (GEMMA[1], GEMMA_NAMES + CACHED),
    ],
)
def test_readers_find_the_books_names_in_each_notebook(notebooks, name, wanted):
    assert [each for each in wanted if not hasattr(notebooks[name], each)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*AYA, *QWEN, *GEMMA])
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


@pytest.mark.parametrize("name", [AYA[1], QWEN[1], *GEMMA])
def test_a_notebooks_stream_gives_one_token_of_each_row_at_a_time(notebooks, name):
    notebook = notebooks[name]
    model = small_model(notebook, name)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    tokens = list(notebook.generate_text_basic_stream(model, prompt, max_new_tokens=12))
    assert [tuple(token.shape) for token in tokens] == [(2, 1)] * 12


@pytest.mark.parametrize("name", [*AYA, *QWEN, *GEMMA])
def test_no_cell_is_longer_than_one_idea(name):
    (path,) = (ROOT / "ch05").glob(f"*/{name}")
    cells = nbformat.read(path, as_version=4).cells
    lengths = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
    assert max(lengths) <= 45


def test_a_local_folder_of_weights_is_found_or_not(notebooks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in GEMMA:
        assert notebooks[name].resolve_local_model_dir("gemma-4-E2B-it") is None
    (tmp_path / "ch05" / "17_gemma4" / "gemma-4-E2B-it").mkdir(parents=True)
    (tmp_path / "ch05" / "17_gemma4" / "gemma-4-E2B-it" / "config.json").write_text("{}")
    for name in GEMMA:
        found = notebooks[name].resolve_local_model_dir("gemma-4-E2B-it")
        assert found.as_posix() == "ch05/17_gemma4/gemma-4-E2B-it"


@pytest.mark.parametrize("model", what_changed.WITH_CACHES, ids=lambda model: model.name)
def test_the_page_counts_what_each_cache_really_holds(model):
    for n in (100, 600):  # shorter, and longer, than Gemma 4's window
        assert model.cache_bytes(n) == model.kept_bytes(n)
