"""Appendix E: LoRA changes nothing at first, merges exactly, and equals the peft library's."""

import pytest
import torch

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


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be at least 1, got {rank}"):
        LoRALayer(3, 3, rank, 1)


def test_precision_and_device_are_those_of_the_layer():
    layer = LinearWithLoRA(torch.nn.Linear(4, 4).double(), 2, 4)
    assert layer(torch.randn(1, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2), (4, 16)])
def test_one_layer_and_a_whole_gpt_equal_peft(rank, alpha):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    for module, targets in (
        (torch.nn.Sequential(torch.nn.Linear(6, 5)), ["0"]),
        (GPTModel(CONFIG), None),
    ):
        module.eval()
        targets = targets or [
            n for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)
        ]
        ours = (
            type(module)(CONFIG) if targets != ["0"] else torch.nn.Sequential(torch.nn.Linear(6, 5))
        )
        ours.load_state_dict(module.state_dict())
        ours.eval()
        replace_linear_with_lora(ours, rank, alpha)
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        theirs = peft.get_peft_model(module, config).eval()
        matrices = dict(theirs.named_parameters())
        for name, tensor in lora_state_dict(ours).items():
            base, _, letter = name.rpartition(".lora.")
            matrix = matrices[f"base_model.model.{base}.lora_{letter}.default.weight"]
            with torch.no_grad():
                tensor.normal_(std=0.05)
                matrix.copy_(tensor.T)
        x = torch.randn(3, 6) if targets == ["0"] else ids()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
