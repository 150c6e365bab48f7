"""Appendix E: LoRA changes nothing at first, merges exactly, and equals the peft library's."""

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llms_from_scratch.appendix_e import (
    LinearWithLoRA,
    LoRALayer,
    load_lora,
    lora_state_dict,
    merge_lora,
    replace_linear_with_lora,
    save_lora,
    unmerge_lora,
)
from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, model_configs
from llms_from_scratch.ch06 import replace_output_head, train_classifier_simple

CONFIG = {
    "vocab_size": 60,
    "context_length": 12,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def new_model(seed=1, rank=4, alpha=8, train_lora=True):
    torch.manual_seed(seed)
    model = GPTModel(CONFIG).eval()
    replace_linear_with_lora(model, rank, alpha)
    if train_lora:  # as after training: B is no longer zero
        for name, tensor in lora_state_dict(model).items():
            if name.endswith("B"):
                tensor.normal_(std=0.02)
    return model


def ids():
    return torch.randint(0, 60, (3, 12))


def test_at_the_start_the_model_with_lora_is_exactly_the_model_without():
    torch.manual_seed(1)
    plain = GPTModel(CONFIG).eval()
    x = ids()
    assert torch.equal(new_model(train_lora=False)(x), plain(x))


def test_every_linear_layer_is_replaced_once_however_often_it_is_asked():
    model = new_model()
    count = sum(isinstance(module, LinearWithLoRA) for module in model.modules())
    assert count == 2 * 6 + 1  # query, key, value, out_proj and two layers a block; out_head
    replace_linear_with_lora(model, 4, 8)
    assert sum(isinstance(module, LinearWithLoRA) for module in model.modules()) == count
    assert not any(
        isinstance(m, LinearWithLoRA)
        for layer in model.modules()
        if isinstance(layer, LinearWithLoRA)
        for m in layer.children()
    )


def test_options_reach_every_layer():
    model = GPTModel(CONFIG)
    replace_linear_with_lora(model, rank=3, alpha=6, dropout=0.25)
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    assert {(layer.A.shape[1], layer.scaling, layer.dropout.p) for layer in layers} == {
        (3, 2, 0.25)
    }


def test_merged_and_unmerged_models_agree():
    model, x = new_model(), ids()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(x)
        merge_lora(model)
        merge_lora(model)  # a second time changes nothing
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-6)
        assert not torch.equal(model.out_head.linear.weight, before["out_head.linear.weight"])
        unmerge_lora(model)
        unmerge_lora(model)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def tied_model(seed=1, **options):
    """A model whose output layer shares its weight with the token embedding."""
    torch.manual_seed(seed)
    model = GPTModel(CONFIG).eval()
    model.out_head.weight = model.tok_emb.weight
    replace_linear_with_lora(model, 4, 8)
    return train_adapter(model)


def train_adapter(model, std=0.02):
    """As after training: B is no longer zero."""
    for name, tensor in lora_state_dict(model).items():
        if name.endswith("B"):
            tensor.normal_(std=std)
    return model


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("build", [new_model, tied_model])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_restores_every_bit(build, dtype):
    model = train_adapter(build().to(dtype), std=1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        merge_lora(model)
        unmerge_lora(model)
    assert states_equal(model.state_dict(), before)


def test_unmerging_follows_a_model_that_was_moved_to_another_precision_meanwhile():
    model, x = new_model(), ids()
    merge_lora(model)
    model.double()
    unmerge_lora(model)
    wanted = new_model().double()
    with torch.no_grad():
        assert torch.equal(model(x), wanted(x))


def test_merging_a_tied_output_layer_leaves_the_embedding_alone_and_unmerging_ties_it_again():
    model, x = tied_model(), ids()
    embedding = model.tok_emb.weight.clone()
    with torch.no_grad():
        wanted = model(x)
        merge_lora(model)
        assert torch.equal(model.tok_emb.weight, embedding)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-5)
        unmerge_lora(model)
        assert model.out_head.linear.weight is model.tok_emb.weight
        assert torch.equal(model(x), wanted)


@given(
    rank=st.integers(1, 5),
    alpha=st.floats(0.25, 64),
    steps=st.lists(st.sampled_from(["merge", "unmerge", "state"]), max_size=6),
)
def test_merging_unmerging_and_loading_the_state_in_any_order_computes_the_same(rank, alpha, steps):
    def build(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        replace_linear_with_lora(model, rank, alpha)
        return train_adapter(model)

    model, x = build(1), torch.linspace(-1, 1, 6)
    with torch.no_grad():
        wanted = model(x)
        for step in steps:
            if step == "state":  # into another model, which may be merged
                other = build(2)
                if len(steps) % 2:
                    merge_lora(other)
                other.load_state_dict(model.state_dict())
                model = other
            else:
                {"merge": merge_lora, "unmerge": unmerge_lora}[step](model)
            torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_only_the_adapter_is_trained_if_the_rest_is_frozen():
    torch.manual_seed(0)
    model = GPTModel(CONFIG)
    for parameter in model.parameters():
        parameter.requires_grad = False
    replace_linear_with_lora(model, 4, 8)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(lora_state_dict(model))
    model(ids()).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trainable)


def test_trainable_parameters_of_the_book():
    """GPT-2 small with two output classes: 124,441,346 in all, 2,666,528 with rank 16."""
    with torch.device("meta"):
        model = GPTModel(BASE_CONFIG | model_configs["gpt2-small (124M)"])
        model.out_head = torch.nn.Linear(768, 2)
        assert sum(p.numel() for p in model.parameters()) == 124_441_346
        for parameter in model.parameters():
            parameter.requires_grad = False
        replace_linear_with_lora(model, rank=16, alpha=16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_666_528


def test_the_adapter_alone_is_saved_and_loaded(tmp_path):
    model = new_model()
    save_lora(model, tmp_path / "adapter.safetensors")
    other = new_model(train_lora=False)
    load_lora(other, tmp_path / "adapter.safetensors")
    x = ids()
    assert torch.equal(other(x), model(x))
    assert (tmp_path / "adapter.safetensors").stat().st_size < 40_000


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: new_model(rank=5), r"A' is \(24, 4\), the model wants \(24, 5\)"),
        (lambda: GPTModel(CONFIG), "is .*, the model wants no such layer"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_changes(tmp_path, build, message):
    save_lora(new_model(), tmp_path / "a.safetensors")
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_lora(model, tmp_path / "a.safetensors")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_merged_models_and_models_without_lora_are_told_apart(tmp_path):
    save_lora(new_model(), tmp_path / "a.safetensors")
    model = new_model()
    merge_lora(model)
    with pytest.raises(ValueError, match="are merged: call unmerge_lora first"):
        load_lora(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no LoRA layers"):
        save_lora(GPTModel(CONFIG), tmp_path / "b.safetensors")


def test_an_adapter_of_another_base_model_is_refused_unless_that_is_wanted(tmp_path):
    save_lora(new_model(seed=1), tmp_path / "a.safetensors")
    other = new_model(seed=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="on another base model; load the same weights first"):
        load_lora(other, tmp_path / "a.safetensors")
    assert states_equal(other.state_dict(), before)
    load_lora(other, tmp_path / "a.safetensors", strict=False)
    assert states_equal(lora_state_dict(other), lora_state_dict(new_model(seed=1)))


def test_layers_with_unlike_ranks_and_alphas_of_the_same_ratio_are_told_apart(tmp_path):
    def build(alphas):
        torch.manual_seed(0)
        layers = [LinearWithLoRA(torch.nn.Linear(4, 4), 2, alpha) for alpha in alphas]
        return torch.nn.Sequential(*layers)

    save_lora(build([2, 4]), tmp_path / "a.safetensors")
    load_lora(build([2.0, 4.0]), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"of '0' are \[2, 2.0\], the model's \[2, 4.0\]"):
        load_lora(build([4, 2]), tmp_path / "a.safetensors")


def test_an_adapter_that_does_not_say_what_it_belongs_to_is_refused_unless_that_is_wanted(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(lora_state_dict(new_model()), path)
    with pytest.raises(ValueError, match="does not say on which"):
        load_lora(new_model(), path)
    load_lora(new_model(), path, strict=False)


def test_a_merged_models_adapter_is_not_saved_as_zeros(tmp_path):
    model = new_model()
    merge_lora(model)
    with pytest.raises(ValueError, match="are merged: call unmerge_lora first"):
        save_lora(model, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_adapter_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(new_model(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="a.safetensors is no whole safetensors file"):
        load_lora(new_model(), path)


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be at least 1, got {rank}"):
        LoRALayer(3, 3, rank, 1)


def test_precision_and_device_are_those_of_the_layer():
    layer = LinearWithLoRA(torch.nn.Linear(4, 4).double(), 2, 4)
    assert layer(torch.randn(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_dropout_acts_on_the_change_alone_and_only_in_training():
    torch.manual_seed(0)
    layer = LinearWithLoRA(torch.nn.Linear(4, 3), 2, 4, dropout=1.0)
    torch.nn.init.normal_(layer.lora.B)
    x = torch.randn(5, 4)
    assert torch.equal(layer.train()(x), layer.linear(x))
    assert not torch.allclose(layer.eval()(x), layer.linear(x))


def test_training_a_classifier_changes_the_adapter_and_nothing_else():
    """Chapter 6's training loop on a GPT with LoRA, as in section E.4."""
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    replace_output_head(model, num_classes=2)
    model.requires_grad_(False)
    replace_linear_with_lora(model, 4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.tensor([0, 1] * 8)
    # (16, 12): rows of the second class are those with larger ids
    loader = [(torch.randint(0, 30, (16, 12)) + 30 * labels.unsqueeze(1), labels)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, *_ = train_classifier_simple(model, loader, loader, optimizer, "cpu", 20, 1, None)
    assert losses[-1] < 0.1 < losses[0]
    changed = {
        name for name, old in before.items() if not torch.equal(model.state_dict()[name], old)
    }
    assert changed == set(lora_state_dict(model))


# --- The peft library, written by others, computes the same ---


def ours_and_theirs(build, rank, alpha):
    """The same model with our LoRA and with peft's, with the same matrices that are not zero."""
    torch.manual_seed(0)
    ours, base = build().eval(), build().eval()
    base.load_state_dict(ours.state_dict())
    layers = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    ours.requires_grad_(False)
    replace_linear_with_lora(ours, rank, alpha)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
    theirs = peft.get_peft_model(base, config).eval()
    pairs = []
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            layer, _, letter = name.rpartition(".lora.")
            matrix = theirs.get_submodule(f"base_model.model.{layer}.lora_{letter}.default").weight
            with torch.no_grad():
                matrix.copy_(parameter.normal_(std=0.05).T)
            pairs.append((parameter, matrix))
    assert len(pairs) == 2 * len(layers)
    return ours, theirs, pairs


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2), (4, 16)])
@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Linear(6, 5)), lambda: torch.randn(3, 6)),
        (lambda: GPTModel(CONFIG), ids),
    ],
    ids=["one layer", "small GPT"],
)
def test_outputs_gradients_and_merged_weights_equal_pefts(build, inputs, rank, alpha):
    ours, theirs, pairs = ours_and_theirs(build, rank, alpha)
    x = inputs()
    outputs = ours(x)
    torch.testing.assert_close(outputs, theirs(x), rtol=0, atol=1e-5)

    outputs.square().mean().backward()
    theirs(x).square().mean().backward()
    for ours_matrix, theirs_matrix in pairs:
        torch.testing.assert_close(ours_matrix.grad, theirs_matrix.grad.T, rtol=0, atol=1e-5)

    merge_lora(ours)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        if ".lora." not in name:
            wanted = merged[name.replace(".linear.", ".")]
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-5)
