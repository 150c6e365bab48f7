"""GPT-2's weights: right from every format, and refused with a reason when they are not right."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peak_memory import run_and_measure
from safetensors.torch import load_file, save_file

from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, GPTModelFast
from llms_from_scratch.ch05 import (
    assign,
    bundled_in_openai_layout,
    choose_pretrained,
    download_and_load_gpt2,
    load_gpt2_params_from_tf_ckpt,
    load_pretrained,
    load_weights_into_gpt,
)
from llms_from_scratch.data.manifest import ASSETS
from llms_from_scratch.weights import pretrained, sources
from llms_from_scratch.weights.gpt2 import (
    config_from_hub,
    export_to_hub_folder,
    from_openai,
    load_gpt2,
)
from llms_from_scratch.weights.hub import from_hub_folder
from llms_from_scratch.weights.pretrained import config_from_openai
from llms_from_scratch.weights.sources import from_dict
from llms_from_scratch.weights.tf_bundle import TFCheckpoint

CONFIG = {
    "vocab_size": 101,
    "context_length": 20,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
TF_FIXTURE = Path(__file__).parent / "data" / "tiny-gpt2-tensorflow"


@pytest.fixture
def hub_model():
    """A random GPT-2 of transformers in which every weight, norms included, is unlike its start."""
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=20, n_embd=24, n_layer=2, n_head=3, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def hub_folder(hub_model, tmp_path):
    hub_model.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def logits_agree(model, hub_model, atol=1e-5):
    ids = torch.randint(0, 101, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids), hub_model(ids).logits, rtol=0, atol=atol)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_class", [GPTModel, GPTModelFast])
def test_a_hub_folder_gives_the_logits_of_transformers(hub_folder, hub_model, model_class):
    loaded = load_pretrained(hub_folder, model_class)
    assert loaded.config == CONFIG
    logits_agree(loaded.model, hub_model)


def test_names_without_the_transformer_prefix_are_understood(hub_model, tmp_path):
    tensors = {k: v.clone() for k, v in hub_model.transformer.state_dict().items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 20, 20)  # a mask, as in older files
    save_file(tensors, tmp_path / "model.safetensors")
    model = GPTModel(CONFIG)
    load_gpt2(model, sources.from_safetensors(tmp_path / "model.safetensors"))
    logits_agree(model, hub_model)


@pytest.mark.parametrize("model_class", [GPTModel, GPTModelFast])
def test_our_model_written_as_a_hub_folder_gives_the_same_logits_in_transformers(
    tmp_path, model_class
):
    torch.manual_seed(1)
    ours = model_class(CONFIG).eval()
    export_to_hub_folder(ours, CONFIG, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    logits_agree(ours, theirs)
    assert not theirs.config.tie_word_embeddings


@pytest.mark.parametrize("model_class", [GPTModel, GPTModelFast])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_way_to_the_hub_format_and_back_changes_no_bit(tmp_path, model_class, qkv_bias, tied):
    config = CONFIG | {"qkv_bias": qkv_bias}
    ours, again = model_class(config), model_class(config)
    if tied:
        ours.out_head.weight = ours.tok_emb.weight
    export_to_hub_folder(ours, config, tmp_path)
    load_gpt2(again, from_hub_folder(tmp_path))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert config_from_hub(tmp_path) == CONFIG


def test_exported_tokenizer_files_give_gpt2s_ids(tmp_path):
    config = CONFIG | {"vocab_size": 50257}
    export_to_hub_folder(GPTModel(config), config, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Hello, I am")["input_ids"] == [15496, 11, 314, 716]


def test_a_model_with_another_vocabulary_is_exported_without_gpt2s(tmp_path):
    export_to_hub_folder(GPTModel(CONFIG), CONFIG, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] is None


# --- OpenAI's TensorFlow format ---


def test_a_tensorflow_checkpoint_is_read_as_tensorflow_wrote_it():
    """The fixture was written by TensorFlow itself; see tests/data/README.md."""
    checkpoint = TFCheckpoint(TF_FIXTURE / "model.ckpt")
    wanted = np.load(TF_FIXTURE / "expected.npz")
    assert sorted(checkpoint.shapes) == sorted(wanted.files)
    for name in wanted.files:
        assert checkpoint.shapes[name] == wanted[name].shape
        assert np.array_equal(checkpoint.read(name), wanted[name]), name


def test_openai_layout_gives_the_logits_of_transformers():
    loaded = load_pretrained(TF_FIXTURE)
    hub_model = transformers.GPT2LMHeadModel.from_pretrained(TF_FIXTURE / "hub").eval()
    logits_agree(loaded.model, hub_model)


def test_params_of_the_book_give_the_same_model_as_the_direct_way():
    settings = json.loads((TF_FIXTURE / "hparams.json").read_text(encoding="utf-8"))
    params = load_gpt2_params_from_tf_ckpt(TF_FIXTURE / "model.ckpt", settings)
    assert sorted(params) == ["b", "blocks", "g", "wpe", "wte"]
    assert params["blocks"][1]["attn"]["c_attn"]["w"].shape == (24, 72)
    model = GPTModel(CONFIG)
    load_weights_into_gpt(model, params)
    direct = load_pretrained(TF_FIXTURE).model
    assert_unchanged(model, state(direct))


def test_the_bundled_model_in_openais_layout_is_the_bundled_model():
    settings, params = bundled_in_openai_layout()
    direct = load_pretrained("gpt2-tiny")
    model = GPTModel(direct.config)
    load_weights_into_gpt(model, params)
    assert_unchanged(model, state(direct.model))
    assert config_from_openai(settings) | {"drop_rate": 0.0} == direct.config | {"drop_rate": 0.0}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"emb_dim": 96, "n_layers": 6}, "'wte.weight' has shape"),
        ({"n_layers": 5}, "h.5."),
        ({"n_layers": 7}, "'h.6.*is missing"),
        ({"qkv_bias": False}, "set qkv_bias=True"),
    ],
)
def test_params_that_do_not_fit_are_named_and_nothing_is_copied(change, said):
    settings, params = bundled_in_openai_layout()
    model = GPTModel(load_pretrained("gpt2-tiny").config | change)
    before = state(model)
    with pytest.raises(ValueError, match=said):
        load_weights_into_gpt(model, params)
    assert_unchanged(model, before)


def test_params_for_a_model_of_another_kind_are_refused():
    _, params = bundled_in_openai_layout()
    with pytest.raises(ValueError, match="GPTModelFast is no GPTModel"):
        load_weights_into_gpt(GPTModelFast(load_pretrained("gpt2-tiny").config), params)


def test_tensorflow_itself_reads_the_same_numbers():
    tensorflow = pytest.importorskip("tensorflow", reason="the optional extra 'tensorflow'")
    prefix = str(TF_FIXTURE / "model.ckpt")
    checkpoint = TFCheckpoint(prefix)
    names = [name for name, _ in tensorflow.train.list_variables(prefix)]
    assert sorted(names) == sorted(checkpoint.shapes)
    for name in names:
        assert np.array_equal(tensorflow.train.load_variable(prefix, name), checkpoint.read(name))


def copy_fixture(tmp_path) -> Path:
    for path in TF_FIXTURE.glob("model.ckpt*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("change", [lambda b: b[:-10], lambda b: b + b"12345", lambda b: b""])
def test_tensorflow_files_of_the_wrong_length_are_refused(tmp_path, suffix, change):
    prefix = copy_fixture(tmp_path)
    path = Path(f"{prefix}.{suffix}")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="bytes, its index says|not the index of|is damaged"):
        from_openai(prefix)


def test_a_damaged_index_never_gives_wrong_tensors_silently(tmp_path):
    prefix = copy_fixture(tmp_path)
    index, rng = Path(f"{prefix}.index").read_bytes(), random.Random(0)
    expected = np.load(TF_FIXTURE / "expected.npz")
    for _ in range(300):
        damaged = bytearray(index)
        damaged[rng.randrange(len(index))] ^= 1 << rng.randrange(8)
        Path(f"{prefix}.index").write_bytes(damaged)
        try:
            checkpoint = TFCheckpoint(prefix)
            tensors = {name: checkpoint.read(name) for name in checkpoint.shapes}
        except ValueError:
            continue
        for name, tensor in tensors.items():  # harmless, or a changed name that no model wants
            assert name not in expected.files or np.array_equal(tensor, expected[name])


def test_missing_tensorflow_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.ckpt.index is missing"):
        from_openai(tmp_path / "model.ckpt")


def test_openai_files_come_from_a_mirror_laid_out_as_the_manifest_says(tmp_path, monkeypatch):
    """Here the manifest doesn't know the size of the data, since the model is a tiny one."""
    data_name = "openai-774M/model.ckpt.data-00000-of-00001"
    monkeypatch.setitem(ASSETS, data_name, dataclasses.replace(ASSETS[data_name], size=None))
    mirror = tmp_path / "mirror"
    (mirror / "openai-774M").mkdir(parents=True)
    for path in TF_FIXTURE.glob("*"):
        if path.is_file():
            (mirror / "openai-774M" / path.name).write_bytes(path.read_bytes())
    (mirror / "openai-774M" / "checkpoint").write_text("state", encoding="utf-8")
    (mirror / "gpt2-vocab").mkdir()
    from llms_from_scratch.tokenizer import encoder_json, vocab_bpe

    (mirror / "gpt2-vocab/encoder.json").write_bytes(encoder_json())
    (mirror / "gpt2-vocab/vocab.bpe").write_bytes(vocab_bpe())
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(mirror))
    settings, params = download_and_load_gpt2("774M", tmp_path / "gpt2")
    assert settings["n_layer"] == len(params["blocks"]) == 2
    assert sorted(path.name for path in (tmp_path / "gpt2/774M").glob("[a-z]*")) == [
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "model.ckpt.meta",
        "vocab.bpe",
    ]


def test_unknown_model_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of .*'124M'.* got '345M'"):
        download_and_load_gpt2("345M", tmp_path)


# --- Files that are wrong ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("h.1.mlp.c_fc.bias"), r"tensor 'h.1.mlp.c_fc.bias' is missing"),
        (
            lambda t: t.update({"wpe.weight": torch.zeros(19, 24)}),
            r"tensor 'wpe.weight' has shape \(19, 24\), wanted \(20, 24\)",
        ),
        (
            lambda t: t.update({"h.0.attn.c_attn.weight": torch.zeros(72, 24)}),
            r"'h.0.attn.c_attn.weight' has shape \(72, 24\), wanted \(24, 72\)",
        ),
        (lambda t: t.update({"h.2.ln_1.bias": torch.zeros(24)}), "no place for 'h.2.ln_1.bias'"),
    ],
)
def test_wrong_tensors_are_named_and_the_model_stays_as_it_was(hub_model, change, message):
    tensors = dict(hub_model.transformer.state_dict())
    change(tensors)
    model = GPTModel(CONFIG)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        load_gpt2(model, sources.from_dict(tensors, "tensors"))
    assert_unchanged(model, before)


def test_biases_that_the_model_lacks_are_refused_unless_they_are_zero(hub_model):
    model = GPTModel(CONFIG | {"qkv_bias": False})
    tensors = dict(hub_model.transformer.state_dict())
    with pytest.raises(ValueError, match=r"c_attn.bias' \(set qkv_bias=True\)"):
        load_gpt2(model, sources.from_dict(tensors, "tensors"))
    for i in range(2):
        tensors[f"h.{i}.attn.c_attn.bias"] = torch.zeros(72)
    load_gpt2(model, sources.from_dict(tensors, "tensors"))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b + b"\0",
        lambda b: b[:4],
        lambda b: b"",
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b[:8] + b"}" + b[9:],
        lambda b: b.replace(b'"F32"', b'"F99"', 1),
    ],
)
def test_truncated_overlong_and_corrupt_safetensors_are_refused(hub_folder, change):
    path = hub_folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_pretrained(hub_folder)


def test_a_state_dict_file_is_read(tmp_path):
    ours = GPTModel(CONFIG)
    torch.save(ours.state_dict(), tmp_path / "model.pth")
    source = sources.from_pth(tmp_path / "model.pth")
    assert source.shapes["tok_emb.weight"] == (101, 24)
    assert torch.equal(source.read("pos_emb.weight"), ours.pos_emb.weight)


def test_what_gpt_train_writes_and_single_files_are_read(tmp_path, hub_folder, hub_model):
    ours = GPTModel(CONFIG).eval()
    torch.save(ours.state_dict(), tmp_path / "model.pth")
    settings = json.dumps({"config": CONFIG})
    (tmp_path / "settings.json").write_text(settings, encoding="utf-8")
    for path in (tmp_path, tmp_path / "model.pth"):
        assert_unchanged(load_pretrained(path).model, state(ours))
    logits_agree(load_pretrained(hub_folder / "model.safetensors").model, hub_model)
    (hub_folder / "config.json").unlink()
    with pytest.raises(ValueError, match="put its config.json or settings.json beside it"):
        load_pretrained(hub_folder / "model.safetensors")


def test_a_state_dict_of_another_model_is_refused(tmp_path):
    torch.save(GPTModel(CONFIG | {"n_layers": 3}).state_dict(), tmp_path / "model.pth")
    model = GPTModel(CONFIG)
    before = state(model)
    with pytest.raises(ValueError, match="no place for 'trf_blocks.2.att.W_query.weight'"):
        load_gpt2(model, sources.from_pth(tmp_path / "model.pth"))
    assert_unchanged(model, before)


def test_convert_command_goes_to_the_hub_format_and_back(tmp_path, hub_folder, capsys):
    assert cli(["convert", str(hub_folder), str(tmp_path / "ours.pth")]) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.pth").write_bytes((tmp_path / "ours.pth").read_bytes())
    settings = json.dumps({"config": CONFIG})
    (tmp_path / "run/settings.json").write_text(settings, encoding="utf-8")
    assert cli(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    before, after = (
        transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict()
        for folder in (hub_folder, tmp_path / "back")
    )
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with pytest.raises(SystemExit) as error:
        cli(["convert", str(hub_folder), str(tmp_path / "back")])
    assert error.value.code == 2
    assert "exists: choose another name" in capsys.readouterr().err


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_that_would_run_code_is_refused_and_the_code_does_not_run(tmp_path):
    torch.save({"w": Malicious(tmp_path / "marker")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="cannot be read as a file of weights only"):
        sources.from_pth(tmp_path / "model.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [[1, 2], {"w": 3}, torch.zeros(2)])
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="something else than a model's weights"):
        sources.from_pth(tmp_path / "model.pth")


def test_assign_checks_the_shape_and_copies_in_place():
    left = torch.nn.Parameter(torch.zeros(2, 3))
    assert assign(left, np.ones((2, 3), dtype=np.float32)) is left
    assert left.sum() == 6 and left.requires_grad
    with pytest.raises(ValueError, match=r"Shape mismatch. Left: .*\[2, 3\].*, Right: .*\[3, 2\]"):
        assign(left, torch.zeros(3, 2))


MEASURE_PEAK = """
import os, sys, torch
from llms_from_scratch.ch04 import GPTModelFast
from llms_from_scratch.weights.gpt2 import config_from_hub, load_gpt2
from llms_from_scratch.weights.hub import from_hub_folder
from llms_from_scratch.weights.pretrained import config_from_openai
folder = sys.argv[1]
model = GPTModelFast(config_from_hub(folder))
before = peak()
load_gpt2(model, from_hub_folder(folder))
print((peak() - before) / os.path.getsize(folder + "/model.safetensors"))
"""


def test_loading_needs_at_most_1_3_times_the_file_beside_the_model(tmp_path):
    config = CONFIG | {"vocab_size": 8000, "emb_dim": 384, "n_heads": 6, "n_layers": 12}
    export_to_hub_folder(GPTModelFast(config), config, tmp_path)
    assert 0 < run_and_measure(MEASURE_PEAK, tmp_path) < 1.3


# --- Choosing a model ---


def test_without_a_network_the_bundled_model_is_used_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    monkeypatch.delenv("LLMS_FROM_SCRATCH_MIRROR", raising=False)
    chosen = choose_pretrained("gpt2-small (124M)")
    assert chosen.name == "gpt2-tiny" and not chosen.model.training
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "gpt2-small (124M) could not be downloaded" in printed


def test_the_wanted_model_is_used_where_it_can_be_had(tmp_path, monkeypatch, capsys, hub_folder):
    mirror = tmp_path / "mirror/gpt2"
    mirror.mkdir(parents=True)
    (mirror / "model.safetensors").write_bytes((hub_folder / "model.safetensors").read_bytes())
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(pretrained.model_configs, "gpt2-small (124M)", CONFIG)
    chosen = choose_pretrained("gpt2-small (124M)")
    assert (chosen.name, chosen.config) == ("gpt2-small (124M)", CONFIG)
    assert capsys.readouterr().out == "Model: gpt2-small (124M)\n"


def test_a_wrong_path_is_an_error_and_no_reason_to_use_another_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a known model .* nor a path"):
        choose_pretrained(tmp_path / "nothing")


def test_an_adapter_beside_a_model_is_not_taken_for_the_model(tmp_path, hub_folder):
    save_file({"lora.A": torch.zeros(2, 2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        load_pretrained(tmp_path)
    for file in hub_folder.iterdir():
        shutil.copy(file, tmp_path)
    assert load_pretrained(tmp_path).config == CONFIG


def test_the_bundled_model_is_a_gpt2_for_transformers_too():
    bundled = load_pretrained("gpt2-tiny")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(pretrained.BUNDLED, dtype=torch.float32)
    ids = torch.randint(0, 50257, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(bundled.model(ids), theirs.eval()(ids).logits, rtol=0, atol=1e-4)
    assert (pretrained.BUNDLED / "model.safetensors").stat().st_size < 30_000_000


def test_a_converted_file_alone_is_read_again(tmp_path):
    assert cli(["convert", "gpt2-tiny", str(tmp_path / "t.pth")]) == 0
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = load_pretrained("gpt2-tiny").model(ids)
        assert torch.equal(load_pretrained(tmp_path / "t.pth").model(ids), wanted)
    plain = GPTModel(
        BASE_CONFIG | {"emb_dim": 768, "n_heads": 12, "n_layers": 1, "qkv_bias": False}
    )
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    config = load_pretrained(tmp_path / "plain.pth").config
    assert config["n_layers"] == 1 and config["n_heads"] == 12 and not config["qkv_bias"]


def test_weights_of_gpt2_have_no_place_for_another_head_and_the_message_fits():
    model = GPTModel(CONFIG)
    source = from_dict(GPTModel(CONFIG | {"n_layers": CONFIG["n_layers"] + 1}).state_dict(), "x")
    with pytest.raises(ValueError, match="the model has no place for 'trf_blocks") as error:
        load_gpt2(model, source)
    assert "qkv_bias" not in str(error.value)  # the model has it; it is merely shorter
    hub = {"wte.weight": torch.zeros(CONFIG["vocab_size"], CONFIG["emb_dim"])}
    model.out_head = torch.nn.Linear(CONFIG["emb_dim"], 2)
    with pytest.raises(ValueError, match="GPT-2 has nothing for 'out_head.bias'"):
        load_gpt2(model, from_dict(hub, "hub"))


@pytest.mark.parametrize("content", ["{}", '{"config": 3}'])
def test_settings_that_describe_no_model_are_a_value_error(tmp_path, content):
    torch.save(GPTModel(CONFIG).state_dict(), tmp_path / "model.pth")
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings.json has no 'config' of a model"):
        load_pretrained(tmp_path)
