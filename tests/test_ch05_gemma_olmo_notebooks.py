"""The notebooks of Gemma 3 and Olmo 3 as modules, and the page that compares the models."""

import importlib.util
import sys

import pytest
import torch
import transformers
import what_changed
from repository import ROOT

from llms_from_scratch.gemma3 import GEMMA3_CONFIG_270M
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.olmo3 import OLMO3_CONFIG_7B
from llms_from_scratch.utils import import_definitions_from_notebook

GEMMA = ("standalone-gemma3.ipynb", "standalone-gemma3-plus-kvcache.ipynb")
OLMO = ("standalone-olmo3.ipynb", "standalone-olmo3-plus-kv-cache.ipynb")
PARTS = """
    FeedForward RMSNorm compute_rope_params apply_rope GroupedQueryAttention TransformerBlock
    apply_chat_template
""".split()
GEMMA_NAMES = [*PARTS, "Gemma3Model", "load_weights_into_gemma", "GemmaTokenizer"]
OLMO_NAMES = [*PARTS, "Olmo3Model", "load_weights_into_olmo", "OlmoTokenizer"]
CACHED = ["KVCache", "generate_text_basic_stream"]
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
SIZES = {
    "vocab_size": 257,
    "context_length": 64,
    "emb_dim": 32,
    "hidden_dim": 48,
    "n_heads": 4,
    "n_layers": 3,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": TYPES,
    "dtype": torch.float32,
}
THEIR_SIZES = {
    "vocab_size": 257,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": TYPES,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
ROPE = {"sliding_attention": PLAIN, "full_attention": PLAIN | YARN}


@pytest.fixture(scope="module")
def notebooks():
    folders = dict.fromkeys(GEMMA, "12_gemma3") | dict.fromkeys(OLMO, "13_olmo3")
    return {
        name: import_definitions_from_notebook(ROOT / "ch05" / folder, name)
        for name, folder in folders.items()
    }


def gemma_config(**changes):
    sizes = {"n_kv_groups": 2, "query_pre_attn_scalar": 8}
    return GEMMA3_CONFIG_270M | SIZES | sizes | changes


def olmo_config(**changes):
    sizes = {"n_kv_heads": 2, "rope_base": 500.0, "rope_orig_max": 16}
    return OLMO3_CONFIG_7B | SIZES | sizes | changes


def with_random_parameters(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def gemma_pair(notebook):
    config = transformers.Gemma3TextConfig(**THEIR_SIZES, query_pre_attn_scalar=8)
    theirs = with_random_parameters(transformers.Gemma3ForCausalLM(config))
    ours = notebook.Gemma3Model(gemma_config())
    notebook.load_weights_into_gemma(ours, ours.cfg, theirs.state_dict())
    return ours, theirs


def olmo_pair(notebook):
    config = transformers.Olmo3Config(**THEIR_SIZES, rope_parameters=ROPE)
    theirs = with_random_parameters(transformers.Olmo3ForCausalLM(config))
    ours = notebook.Olmo3Model(olmo_config(rms_norm_eps=config.rms_norm_eps))
    notebook.load_weights_into_olmo(ours, ours.cfg, theirs.state_dict())
    return ours, theirs


PAIRS = [*((name, gemma_pair) for name in GEMMA), *((name, olmo_pair) for name in OLMO)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (GEMMA[0], [*GEMMA_NAMES, "calc_model_memory_size"]),
        (GEMMA[1], GEMMA_NAMES + CACHED),
        (OLMO[0], OLMO_NAMES),
        (OLMO[1], OLMO_NAMES + CACHED),
    ],
)
def test_readers_find_the_books_names_in_each_notebook(notebooks, name, wanted):
    assert [each for each in wanted if not hasattr(notebooks[name], each)] == []


@pytest.mark.parametrize(("name", "pair_of"), PAIRS)
def test_a_notebooks_model_equals_transformers_with_windows_full_layers_and_yarn(
    notebooks, name, pair_of
):
    torch.manual_seed(1)
    ours, theirs = pair_of(notebooks[name])
    ids = torch.randint(0, 257, (2, 40))  # ten windows
    with torch.no_grad():
        wanted = theirs(ids).logits
        torch.testing.assert_close(ours(ids), wanted, rtol=1e-5, atol=1e-5)
        for sizes in ([1] * 40, [11, 1, 28]):
            cache = KVCache.for_model(ours)
            logits = torch.cat([ours(piece, cache=cache) for piece in ids.split(sizes, 1)], dim=1)
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*GEMMA, *OLMO])
def test_the_books_small_configurations_give_logits(notebooks, name):
    notebook = notebooks[name]
    changes = {"vocab_size": 100, "n_layers": 2, "layer_types": ["full_attention"] * 2}
    if name in GEMMA:
        cfg = gemma_config(**changes, n_kv_groups=1, sliding_window=16, query_pre_attn_scalar=256)
        model = notebook.Gemma3Model(cfg)
    else:
        rope = {"rope_type": "default", "rope_factor": 1.0, "rope_attention_factor": 1.0}
        model = notebook.Olmo3Model(olmo_config(**changes, **rope, n_kv_heads=1))
    assert model(torch.tensor([[1, 2, 3, 99]])).shape == (1, 4, 100)


@pytest.mark.parametrize("name", [GEMMA[1], OLMO[1]])
def test_a_notebooks_stream_gives_one_token_of_each_row_at_a_time(notebooks, name):
    notebook = notebooks[name]
    make, cfg = (
        (notebook.Gemma3Model, gemma_config())
        if name in GEMMA
        else (notebook.Olmo3Model, olmo_config())
    )
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    tokens = list(notebook.generate_text_basic_stream(make(cfg), prompt, max_new_tokens=12))
    assert [tuple(token.shape) for token in tokens] == [(2, 1)] * 12


def test_the_books_memory_figures_include_its_tables_of_angles(notebooks):
    cfg = GEMMA3_CONFIG_270M
    with torch.device("meta"):
        model = notebooks[GEMMA[0]].Gemma3Model(cfg)
    tables = 4 * cfg["context_length"] * cfg["head_dim"]
    for dtype, wanted in ((torch.float32, 3.37), (torch.bfloat16, 1.69)):
        ours = notebooks[GEMMA[0]].calc_model_memory_size(model, dtype)
        assert ours + tables * dtype.itemsize / 2**30 == pytest.approx(wanted, abs=0.005)


# --- The page that compares the models ---


@pytest.fixture
def page(monkeypatch, tmp_path):
    """A copy of the page, which the tool may write to."""
    copy = tmp_path / "README.md"
    copy.write_text(what_changed.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(what_changed, "PAGE", copy)
    monkeypatch.setattr(what_changed, "ROOT", tmp_path)
    return copy


def run_tool(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["what_changed.py", *arguments])
    return what_changed.main()


def test_the_committed_page_is_what_the_tool_writes(page, monkeypatch):
    committed = page.read_text(encoding="utf-8")
    assert what_changed.page_with_table(committed) == committed
    assert run_tool(monkeypatch, "--check") == 0


def test_another_number_in_the_page_is_found_and_mended(page, monkeypatch):
    committed = page.read_text(encoding="utf-8")
    assert "| 151,936 |" in committed
    wrong = committed.replace("| 151,936 |", "| 151,937 |", 1)
    page.write_text(wrong, encoding="utf-8")
    assert run_tool(monkeypatch, "--check") == 1
    assert page.read_text(encoding="utf-8") == wrong  # --check writes nothing
    assert run_tool(monkeypatch) == 0
    assert page.read_text(encoding="utf-8") == committed


def test_a_page_without_the_marks_of_the_table_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        what_changed.page_with_table("# What changed\n")


def test_the_table_counts_what_a_cache_really_takes():
    """Bytes in the table equal those of a cache after as many tokens, layer by layer."""
    cfg = olmo_config(dtype=torch.bfloat16)
    model = what_changed.Model("small", "olmo3.py", what_changed.olmo3.Olmo3Model, cfg, "", False)
    network = what_changed.olmo3.Olmo3Model(cfg).eval()
    cache = KVCache.for_model(network)
    with torch.no_grad():
        network(torch.zeros(1, 30, dtype=torch.long), cache=cache)
    assert model.cache_bytes(30) == sum(t.nbytes for pair in cache.get_all() for t in pair)


def test_the_diagrams_show_norms_where_the_blocks_have_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "figures")
    spec = importlib.util.spec_from_file_location(
        "architectures", ROOT / "tools" / "figures" / "architectures.py"
    )
    architectures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architectures)
    norms = {
        model.name: [place for place in architectures.parts_of(model) if "norm " in place]
        for model in architectures.MODELS
    }
    before = ["norm before attention", "norm before feed-forward"]
    after = ["norm after attention", "norm after feed-forward"]
    assert norms.pop("Gemma 3 270M") == [before[0], after[0], before[1], after[1]]
    assert norms.pop("Olmo 3 7B") == after
    assert set(map(tuple, norms.values())) == {tuple(before)}
