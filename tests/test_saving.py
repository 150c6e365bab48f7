"""Saving: whatever is saved, of any model in any wrapper, is read back equal or refused at once."""

import io
import json
import math
from collections import Counter, OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from llms_from_scratch.appendix_e import (
    load_lora,
    merge_lora,
    replace_linear_with_lora,
    save_lora,
)
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.ch06 import load_classifier, replace_output_head, save_classifier
from llms_from_scratch.ch07 import load_finetuned, merged_state_dict, save_finetuned
from llms_from_scratch.saving import (
    find_model_class,
    plain_names,
    plain_state_dict,
    plain_value,
    same_value,
)
from llms_from_scratch.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

CONFIG = {
    "vocab_size": 50,
    "context_length": 8,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
IDS = torch.arange(8)[None]
CLASSES = {"GPTModel": GPTModel, "GPTModelFast": GPTModelFast}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def bare(model):
    return model


def with_a_compiled_block(model):
    model.trf_blocks[0] = torch.compile(model.trf_blocks[0])
    return model


def in_processes(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def compiled_in_processes(model):
    return torch.compile(in_processes(model))


WRAPPERS = [
    bare,
    torch.compile,
    with_a_compiled_block,
    torch.nn.DataParallel,
    in_processes,
    compiled_in_processes,
]
all_wrappers = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
all_classes = pytest.mark.parametrize("model_class", CLASSES.values(), ids=CLASSES)


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """A process group of this process alone, so that models can be wrapped for several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def new_model(model_class=GPTModel, seed=1, num_classes=None, **config):
    torch.manual_seed(seed)
    model = model_class(CONFIG | config)
    if num_classes:
        replace_output_head(model, num_classes)
    for parameter in model.parameters():  # norms too: ones and zeros hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def with_lora(model, rank=2, alpha=4):
    replace_linear_with_lora(model, rank=rank, alpha=alpha)
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def assert_equal(loaded, saved):
    """The same class, the same bits, the same function."""
    assert type(loaded) is type(saved)
    state, wanted = loaded.state_dict(), saved.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name
    with torch.no_grad():
        assert torch.equal(loaded(IDS), saved(IDS)) and not loaded.training


def step_of(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# --- every way to save, every class, every wrapper ---


@all_wrappers
@all_classes
def test_a_finetuned_model_is_read_back_equal(tmp_path, model_class, wrap):
    save_finetuned(tmp_path, wrap(new_model(model_class)), CONFIG, "alpaca")
    assert_equal(load_finetuned(tmp_path)[0], new_model(model_class))


@all_wrappers
@all_classes
def test_a_classifier_is_read_back_equal(tmp_path, model_class, wrap):
    folder = tmp_path / "new" / "folder"
    save_classifier(folder, wrap(new_model(model_class, num_classes=3)), CONFIG, max_length=8)
    loaded, about = load_classifier(folder)
    assert_equal(loaded, new_model(model_class, num_classes=3))
    assert about["num_classes"] == 3 and all(p.requires_grad for p in loaded.parameters())


@all_wrappers
@all_classes
def test_a_checkpoint_goes_from_any_wrapper_to_a_bare_model_and_back(tmp_path, model_class, wrap):
    saved = new_model(model_class)
    optimizer = step_of(saved)
    wrapped = wrap(saved)
    save_checkpoint(tmp_path / "new/a.pth", wrapped, optimizer, config=CONFIG)
    plain = new_model(model_class, seed=2)
    load_checkpoint(tmp_path / "new/a.pth", plain, step_of(plain), config=CONFIG)
    save_checkpoint(tmp_path / "b.pth", plain, step_of(plain), config=CONFIG)
    load_checkpoint(tmp_path / "b.pth", wrapped, optimizer)
    wanted = plain_state_dict(wrapped)
    assert all(torch.equal(t, wanted[name]) for name, t in plain.state_dict().items())


@all_wrappers
@all_classes
def test_an_adapter_goes_from_any_wrapper_to_a_bare_model_and_back(tmp_path, model_class, wrap):
    saved = with_lora(new_model(model_class))
    wrapped = wrap(with_lora(new_model(model_class)))
    other = with_lora(new_model(model_class), rank=2)
    for parameter in other.parameters():
        if parameter.shape[0] == 2 or parameter.shape[-1] == 2:
            torch.nn.init.zeros_(parameter)
    save_lora(wrapped, tmp_path / "a")
    load_lora(other, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(other(IDS), saved(IDS))
    for name, parameter in other.named_parameters():
        if name.endswith(".lora.B"):
            torch.nn.init.normal_(parameter)
    save_lora(other, tmp_path / "b")
    load_lora(wrapped, tmp_path / "b")
    wanted = other.state_dict()
    for name, tensor in plain_state_dict(wrapped).items():
        assert ".lora." not in name or torch.equal(tensor, wanted[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_precision_is_kept(tmp_path, dtype):
    save_finetuned(tmp_path, new_model().to(dtype), CONFIG, "alpaca")
    assert_equal(load_finetuned(tmp_path)[0], new_model().to(dtype))
    save_classifier(tmp_path, new_model(num_classes=2).to(dtype), CONFIG, 8)
    assert_equal(load_classifier(tmp_path)[0], new_model(num_classes=2).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_new_head_has_the_models_precision(dtype):
    model = GPTModel(CONFIG).to(dtype)
    replace_output_head(model, 3)
    assert model(IDS).dtype == dtype and model(IDS).shape == (1, 8, 3)


def test_a_model_whose_layers_share_weights_is_read_back_with_equal_ones(tmp_path):
    model = new_model()
    model.out_head.weight = model.tok_emb.weight
    save_finetuned(tmp_path, model, CONFIG, "alpaca")
    assert_equal(load_finetuned(tmp_path)[0], model)


# --- LoRA ---


@all_wrappers
def test_merged_lora_layers_are_saved_as_usual_ones(tmp_path, wrap):
    for number, num_classes in enumerate((None, 2)):
        model = with_lora(new_model(num_classes=num_classes))
        with torch.no_grad():
            wanted = model(IDS)
        merge_lora(model)
        assert set(merged_state_dict(wrap(model))) == set(new_model().state_dict()) | (
            {"out_head.bias"} if num_classes else set()
        )
        model = with_lora(new_model(num_classes=num_classes))
        merge_lora(model)
        if number:
            save_classifier(tmp_path, wrap(model), CONFIG, 8)
            loaded, _ = load_classifier(tmp_path)
        else:
            save_finetuned(tmp_path, wrap(model), CONFIG, "alpaca")
            loaded, _ = load_finetuned(tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(loaded(IDS), wanted)


def test_lora_layers_that_would_be_lost_or_added_twice_are_refused(tmp_path):
    model = with_lora(new_model())
    for save in (
        lambda: save_finetuned(tmp_path, model, CONFIG, "alpaca"),
        lambda: save_classifier(tmp_path, model, CONFIG, 8),
    ):
        with pytest.raises(ValueError, match="is not merged: call merge_lora first"):
            save()
    optimizer = step_of(model)
    save_checkpoint(tmp_path / "c.pth", model, optimizer, config={})
    merge_lora(model)
    with pytest.raises(ValueError, match="is merged: call unmerge_lora"):
        save_checkpoint(tmp_path / "d.pth", model, optimizer, config={})
    with pytest.raises(CheckpointError, match="is merged: call unmerge_lora"):
        load_checkpoint(tmp_path / "c.pth", model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_an_adapter_of_another_alpha_is_refused(tmp_path):
    save_lora(with_lora(new_model(), alpha=4), tmp_path / "a")
    with pytest.raises(ValueError, match=r"alpha / rank is \[2.0\], the model's is \[4.0\]"):
        load_lora(with_lora(new_model(), alpha=8), tmp_path / "a")


# --- what cannot be read is not written ---


class Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out_head = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (Other, CONFIG, "'tok_emb.weight' is missing, while a GPTModel"),
        (new_model, CONFIG | {"n_layers": 1}, r"'trf_blocks.1.* has none of this name"),
        (new_model, CONFIG | {"emb_dim": 16}, r"'tok_emb.weight' is \(50, 8\), .* has \(50, 16\)"),
        (new_model, CONFIG | {"colour": 1}, "unknown key 'colour'"),
        (new_model, {}, "missing in the GPT configuration"),
        (lambda: new_model(num_classes=2), CONFIG, r"'out_head.weight' is \(2, 8\), .*\(50, 8\)"),
    ],
)
def test_a_model_that_its_configuration_does_not_describe_is_refused(
    tmp_path, build, config, message
):
    with pytest.raises(ValueError, match=message):
        save_finetuned(tmp_path / "new", build(), config, "alpaca")
    with pytest.raises(ValueError, match=r"could not be read again|GPT configuration"):
        save_classifier(tmp_path / "new", new_model(), config, 8)  # its head has no bias
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.ckpt.index"])
def test_no_model_is_saved_where_another_one_would_be_read_in_its_place(tmp_path, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds another model .{name}.: choose another folder"):
        save_finetuned(tmp_path, new_model(), CONFIG, "alpaca")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_saving_draws_no_random_numbers_and_leaves_the_model_as_it_was(tmp_path):
    model = new_model().train()
    before = torch.get_rng_state()
    save_finetuned(tmp_path, model, CONFIG, "alpaca")
    assert torch.equal(torch.get_rng_state(), before) and model.training


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has no 'config'"),
        ("[]", "has no 'config'"),
        ("{", "is not JSON"),
        ('{"config": {}, "num_classes": 2, "max_length": 8, "model_class": "X"}', "model_class"),
        ('{"config": {}, "num_classes": 2, "max_length": 8, "dtype": "int8"}', "dtype must be"),
        ('{"config": {"a": 1}, "num_classes": 2, "max_length": 8}', "unknown key 'a' in the GPT"),
    ],
)
def test_damaged_settings_are_a_value_error(tmp_path, content, message):
    save_finetuned(tmp_path, new_model(), CONFIG, "alpaca")
    save_classifier(tmp_path, new_model(num_classes=2), CONFIG, 8)
    for name, load in (
        ("settings.json", load_finetuned),
        ("review_classifier.json", load_classifier),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_settings_in_the_current_folder_say_nothing_about_a_model_with_a_name(
    tmp_path, monkeypatch
):
    save_finetuned(tmp_path, new_model(GPTModelFast), CONFIG, "phi3")
    monkeypatch.chdir(tmp_path)
    model, about = load_finetuned("gpt2-tiny")
    assert type(model) is GPTModel and about["prompt_style"] is None


def test_names_of_the_models_own_that_look_like_a_wrappers_are_kept():
    inner = torch.nn.Module()
    inner.module = torch.nn.Linear(2, 1)
    assert set(plain_names(inner)) == set(plain_names(inner).values())
    twice = torch.nn.DataParallel(torch.nn.DataParallel(inner))
    assert list(plain_names(twice).values()) == ["module.weight", "module.bias"]


def test_the_class_is_found_by_its_tensors():
    for name, model_class in CLASSES.items():
        assert find_model_class(new_model(model_class).state_dict(), CONFIG) == name


# --- values in settings and checkpoints ---

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.floats(width=32).map(np.float32)
    | st.integers(0, 9).map(np.int64)
    | st.booleans().map(np.bool_)
    | st.text("ab/", max_size=5).map(PurePosixPath)
    | st.text("ab", max_size=3).map(np.str_)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=6,
)
for_checkpoints = st.recursive(
    scalars
    | st.complex_numbers()
    | st.sampled_from(DTYPES)
    | st.sets(st.integers(), max_size=2)
    | st.lists(st.integers(0, 3)).map(Counter)
    | st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(values | for_checkpoints)
def test_a_plain_value_comes_back_from_a_checkpoint_file(value):
    plain = plain_value(value, "value")
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert same_value(torch.load(file, weights_only=True), plain)
    assert same_value(plain_value(plain, "value"), plain)


@settings(max_examples=150, deadline=None)
@given(values)
def test_a_plain_value_comes_back_from_json(value):
    plain = plain_value(value, "value", for_json=True)
    as_lists = json.loads(json.dumps(plain))
    assert json.dumps(as_lists) == json.dumps(plain)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=3), values, max_size=3), for_checkpoints)
def test_a_checkpoint_is_taken_up_with_the_configuration_that_was_given(
    tmp_path_factory, config, progress
):
    path = tmp_path_factory.mktemp("run") / "c.pth"
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.01))
    save_checkpoint(path, model, optimizer, config=config, progress={"it": progress})
    again = load_checkpoint(path, model, optimizer, config=config)
    assert same_value(again, {"it": plain_value(progress, "it")})
    with pytest.raises(CheckpointError, match="config differs: new"):
        load_checkpoint(path, model, optimizer, config=config | {"new": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"config\['a'\]\[0\] is <object"),
        (len, "could not be read back from a checkpoint"),
        (np.ones(2), "use numbers, texts, lists and dictionaries"),
        (frozenset([1]), "is frozenset"),
        (range(3), "is range"),
        (b"", "is b''"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named_and_the_old_one_stays(tmp_path, value, message):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path / "c.pth", model, optimizer, config={})
    old = (tmp_path / "c.pth").read_bytes()
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "c.pth", model, optimizer, config={"a": [value]})
    assert (tmp_path / "c.pth").read_bytes() == old


@pytest.mark.parametrize("about", [{"a": {1: 2}}, {"a": torch.ones(1)}, {"a": {2}}, {"a": b"x"}])
def test_what_json_would_change_is_refused_before_weights_are_written(tmp_path, about):
    with pytest.raises(ValueError, match=r"settings\['a'\]"):
        save_finetuned(tmp_path / "new", new_model(), CONFIG, "alpaca", **about)
    with pytest.raises(ValueError, match=r"settings\['a'\]"):
        save_classifier(tmp_path / "new", new_model(num_classes=2), CONFIG, 8, **about)
    assert not any(tmp_path.iterdir())


def test_numpy_numbers_and_paths_go_into_settings(tmp_path):
    config = CONFIG | {"emb_dim": np.int64(8), "drop_rate": np.float32(0.5)}
    save_finetuned(tmp_path, new_model(), config, "alpaca", data=Path("a.txt"), loss=np.float64(1))
    _, about = load_finetuned(tmp_path)
    assert about["config"] == CONFIG | {"drop_rate": 0.5}
    assert about["data"] == "a.txt" and about["loss"] == 1.0


def test_equal_values_and_different_ones_are_told_apart():
    for a, b in ((math.nan, math.nan), ({"a": [1, math.nan]}, {"a": [1, math.nan]}), (1, 1.0)):
        assert same_value(a, b)
    ones = torch.ones(2)
    for a, b in (
        (math.inf, -math.inf),
        ([1], (1,)),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (1, "1"),
        (None, 0),
        (ones, ones.double()),
        (ones, torch.ones(3)),
        ({"a": ones}, {"a": 2 * ones}),
    ):
        assert not same_value(a, b)
