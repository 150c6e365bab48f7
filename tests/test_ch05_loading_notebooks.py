"""The notebooks on loading weights as modules: imports work, and all ways load the same model."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from peak_memory import run_and_measure
from safetensors.torch import load_file

from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.utils import import_definitions_from_notebook
from llms_from_scratch.weights.gpt2 import export_to_hub_folder

CH05 = Path(__file__).resolve().parent.parent / "ch05"
ALTERNATIVE = CH05 / "02_alternative_weight_loading"
EFFICIENT = CH05 / "08_memory_efficient_weight_loading" / "memory-efficient-state-dict.ipynb"
METHODS = [
    "baseline",
    "load_then_move",
    "load_sequentially",
    "load_sequentially_with_meta",
    "best_practices",
    "load_individual_weights",
    "load_safetensors_slices",
]
CONFIG = {
    "vocab_size": 101,
    "context_length": 32,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
TOKEN_IDS = torch.arange(16).unsqueeze(0)


@pytest.fixture(scope="module")
def from_transformers():
    pytest.importorskip("transformers")
    return import_definitions_from_notebook(ALTERNATIVE, "weight-loading-hf-transformers.ipynb")


@pytest.fixture(scope="module")
def from_safetensors():
    return import_definitions_from_notebook(ALTERNATIVE, "weight-loading-hf-safetensors.ipynb")


@pytest.fixture(scope="module")
def efficient():
    return import_definitions_from_notebook(EFFICIENT)


@pytest.fixture(scope="module")
def source() -> GPTModel:
    """A GPT whose parameters are all random, norms too, with GPT-2's output layer."""
    torch.manual_seed(123)
    model = GPTModel(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.out_head.weight.data.copy_(model.tok_emb.weight.data)
    return model


@pytest.fixture(scope="module")
def hub(source, tmp_path_factory) -> Path:
    return export_to_hub_folder(source, CONFIG, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def files(efficient, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """The folder that the methods of the second lesson read, and its model's logits."""
    folder = tmp_path_factory.mktemp("files")
    return folder, efficient.write_files(CONFIG, folder)


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(TOKEN_IDS)


def test_weights_from_transformers_give_the_same_logits(from_transformers, source, hub):
    gpt = GPTModel(CONFIG)
    gpt_hf = from_transformers.GPT2Model.from_pretrained(hub)
    from_transformers.load_weights(gpt, gpt_hf)
    torch.testing.assert_close(logits_of(gpt), logits_of(source), rtol=0, atol=0)
    assert gpt.tok_emb.weight.data_ptr() != gpt_hf.wte.weight.data_ptr()
    assert gpt.tok_emb.weight.data_ptr() != gpt.out_head.weight.data_ptr()


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_weights_from_a_hub_file_give_the_same_logits(from_safetensors, source, hub, prefix):
    params = load_file(hub / "model.safetensors")
    params = {name.replace("transformer.", prefix): tensor for name, tensor in params.items()}
    params[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 32, 32)  # a mask, as old files have it
    gpt = GPTModel(CONFIG)
    from_safetensors.load_weights_into_gpt(gpt, params)
    torch.testing.assert_close(logits_of(gpt), logits_of(source), rtol=0, atol=0)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_model_with_another_number_of_blocks_is_refused(
    from_safetensors, from_transformers, hub, change
):
    other = GPTModel(CONFIG | {"n_layers": 3 + change})
    with pytest.raises((ValueError, KeyError), match=r"h\.2\.|h\.3\."):
        from_safetensors.load_weights_into_gpt(other, load_file(hub / "model.safetensors"))
    with pytest.raises(ValueError, match="zip"):
        from_transformers.load_weights(other, from_transformers.GPT2Model.from_pretrained(hub))


def test_tensors_of_another_shape_are_refused(from_safetensors, from_transformers):
    left, right = torch.nn.Parameter(torch.zeros(2, 3)), torch.zeros(3, 2)
    for assign in (from_safetensors.assign, from_transformers.assign_check):
        with pytest.raises(ValueError, match="Shape mismatch"):
            assign(left, right)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_loads_the_same_model_buffers_included(efficient, files, name):
    folder, expected = files
    torch.use_deterministic_algorithms(True)  # uninitialized memory is NaN
    try:
        model = getattr(efficient, name)(folder)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-6, atol=1e-6)
    upper = torch.triu(torch.ones(32, 32), diagonal=1)
    assert all(torch.equal(block.att.mask, upper) for block in model.trf_blocks)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_slices_smaller_than_a_tensor_are_put_together(efficient, files):
    folder, expected = files
    model = efficient.load_safetensors_slices(folder, num_rows=7)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-6, atol=1e-6)


def test_methods_take_a_folder_and_a_device_that_need_not_be_named(efficient):
    for name in METHODS:
        parameters = inspect.signature(getattr(efficient, name)).parameters.values()
        assert all(p.default is not inspect.Parameter.empty for p in parameters), name


def test_growth_of_memory_is_seen_and_errors_are_passed_on(efficient):
    # In a process of its own: the peak of this one may be higher already
    code = (
        "import sys, torch\n"
        "from llms_from_scratch.utils import import_definitions_from_notebook as read\n"
        "measure = read(sys.argv[1]).memory_usage_in_gb\n"
        "print(measure(lambda: torch.ones(50_000_000).sum()))\n"
    )
    assert 0.15 < run_and_measure(code, Path(efficient.__file__)) < 0.3  # 200 MB
    with pytest.raises(ZeroDivisionError):
        efficient.memory_usage_in_gb(lambda: 1 / 0)


def test_memory_of_this_process_is_printed(efficient, capsys):
    efficient.start_memory_tracking()
    efficient.cleanup()
    efficient.print_memory_usage()
    now, peak = map(int, re.findall(r"(\d+) MB", capsys.readouterr().out)[-2:])
    assert 0 < now <= peak


def test_a_method_reports_its_figures_as_json(efficient, files, capsys):
    efficient.report(efficient.load_sequentially, files[0], "cpu")
    result = json.loads(capsys.readouterr().out)
    assert result["same"] is True
    assert {"seconds", "loading", "used", "file"} <= result.keys()


def test_all_three_notebooks_write_the_same_text():
    texts = set()
    for path in ALTERNATIVE.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        lines = ["".join(output.get("text", "")) for output in outputs]
        texts |= {line for line in lines if line.startswith("Every effort moves")}
    assert len(texts) == 1


def test_every_reading_of_a_pickle_says_where_to_and_weights_only():
    for path in [*ALTERNATIVE.glob("*.ipynb"), EFFICIENT]:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for call in re.findall(r"torch\.load\((?!`)[^\n]*", "".join(cell["source"])):
                assert "weights_only=True" in call, call
                assert "map_location" in call or "logits.pt" in call, call
