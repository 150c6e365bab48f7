"""The Qwen3 notebooks as modules: what readers import from them works, and what they show holds."""

import json
import re
from pathlib import Path

import pytest
import torch

from llms_from_scratch import qwen3
from llms_from_scratch.utils import import_definitions_from_notebook

FOLDER = Path(__file__).resolve().parent.parent / "ch05" / "11_qwen3"
NOTEBOOKS = [
    "standalone-qwen3.ipynb",
    "standalone-qwen3-plus-kvcache.ipynb",
    "standalone-qwen3-moe.ipynb",
    "standalone-qwen3-moe-plus-kvcache.ipynb",
]
CONFIG = {  # with keys of other architectures, as those have who test several with one
    "vocab_size": 97,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 48,
    "head_dim": 12,
    "qk_norm": True,
    "n_kv_groups": 2,
    "rope_base": 1_000_000.0,
    "dtype": torch.float32,
    "num_experts": 0,
    "sliding_window": None,
    "layer_types": ["full_attention"] * 2,
    "query_pre_attn_scalar": 12,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_hidden_dim": 24}


@pytest.fixture(scope="module", params=NOTEBOOKS)
def notebook(request):
    return import_definitions_from_notebook(FOLDER, request.param)


@pytest.mark.parametrize("changes", [{}, EXPERTS], ids=["dense", "experts"])
def test_model_and_loader_of_each_notebook_compute_what_the_package_computes(notebook, changes):
    torch.manual_seed(123)
    cfg = CONFIG | changes
    source = qwen3.Qwen3Model(cfg).eval()
    for parameter in source.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    params = {
        qwen3.NAMES[re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)].format(
            *re.findall(r"(?<=\.)\d+(?=\.)", name)
        ): tensor
        for name, tensor in source.state_dict().items()
    }
    model = notebook.Qwen3Model(cfg).eval()
    notebook.load_weights_into_qwen(model, {"n_layers": 2, "hidden_dim": 48}, params)
    idx = torch.randint(0, 97, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), source(idx), rtol=0, atol=0)


def test_each_notebook_has_the_names_that_readers_import(notebook):
    names = "Qwen3Model load_weights_into_qwen Qwen3Tokenizer"
    names += " generate_text_basic_stream calc_model_memory_size"
    if "kvcache" in notebook.__name__:
        names += " KVCache"
    if "moe" in notebook.__name__:
        names += " MoEFeedForward"
    assert [name for name in names.split() if not hasattr(notebook, name)] == []


def test_each_notebooks_stream_yields_greedy_tokens(notebook):
    torch.manual_seed(123)
    model, idx = notebook.Qwen3Model(CONFIG), torch.tensor([[1, 2, 3]])
    new = list(notebook.generate_text_basic_stream(model, idx, max_new_tokens=5))
    assert all(token.shape == (1, 1) for token in new)
    with torch.no_grad():
        for token in new:
            assert torch.equal(token, model(idx)[:, -1:].argmax(dim=-1))
            idx = torch.cat([idx, token], dim=1)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_outputs_have_no_nan_and_pictures_are_there(name):
    cells = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"\bnan\b", printed)
    assert "logits agree to 1e-4" in printed  # with transformers
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    long = [c for c in code if "definition" not in c["metadata"] and len(c["source"]) > 30]
    assert not long


def test_the_published_numbers_stand_in_the_notebooks_and_the_readme():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    dense = (FOLDER / NOTEBOOKS[0]).read_text(encoding="utf-8")
    configs = (name for name in dir(qwen3) if re.match(r"QWEN3?_CONFIG_", name))
    for name in configs:
        with torch.device("meta"):
            model = qwen3.Qwen3Model(getattr(qwen3, name))
        total = sum(parameter.numel() for parameter in model.parameters())
        rest = total - model.tok_emb.weight.numel()
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {total:,} | {rest:,} |" in row
        assert name == "QWEN3_CONFIG_30B_A3B" or f"{total:,}" in dense
