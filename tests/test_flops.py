"""FLOPs and memory: what the formulas say is what PyTorch does."""

import pytest
import torch

from llms_from_scratch.ch03 import MultiHeadAttention
from llms_from_scratch.ch04 import (
    BASE_CONFIG,
    GPT_CONFIG_124M,
    GPTModel,
    GPTModelFast,
    model_configs,
)
from llms_from_scratch.flops import (
    bytes_kept_for_backward,
    count_flops,
    forward_flops,
    matmul_ceiling,
    seconds_of,
    training_flops,
    training_memory,
)

SMALL = GPT_CONFIG_124M | {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "context_length": 32}


def on_meta(cfg, cls=GPTModel, shape=(2, 1024)):
    with torch.device("meta"):
        return cls(cfg), torch.zeros(shape, dtype=torch.long)


def loss_of(model, ids):
    return torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


@pytest.mark.parametrize("cls", [GPTModel, GPTModelFast])
@pytest.mark.parametrize("size", model_configs)
def test_formula_equals_pytorchs_count_for_all_gpt2_sizes(size, cls):
    cfg = BASE_CONFIG | model_configs[size]
    model, ids = on_meta(cfg, cls)
    counted = count_flops(lambda: model(ids))
    assert sum(forward_flops(cfg, 2, 1024).values()) == pytest.approx(counted, rel=0.01)


def test_count_on_the_meta_device_is_that_of_a_real_model():
    model, ids = on_meta(SMALL, shape=(3, 20))
    real_model, real_ids = GPTModel(SMALL), torch.zeros(3, 20, dtype=torch.long)
    counted = count_flops(lambda: real_model(real_ids))
    assert counted == count_flops(lambda: model(ids))
    assert counted == sum(forward_flops(SMALL, 3, 20).values())


def test_backward_pass_takes_twice_the_flops_of_the_forward_pass():
    model, ids = on_meta(SMALL, shape=(3, 20))
    counted = count_flops(lambda: loss_of(model, ids).backward())
    assert counted == training_flops(SMALL, 3, 20)


@pytest.mark.parametrize(
    ("size", "book"), list(zip(model_configs, [5.1e11, 1.4e12, 3.2e12, 6.4e12], strict=True))
)
def test_without_attention_products_the_books_figures_come_out(size, book):
    flops = forward_flops(BASE_CONFIG | model_configs[size], 2, 1024)
    linear = sum(flops.values()) - flops["attention scores"] - flops["weighted values"]
    assert float(f"{linear:.1e}") == book


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="got num_tokens=33, but context_length is 32"):
        forward_flops(SMALL, 1, 33)


def test_kept_bytes_of_a_small_network_are_those_counted_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(5, 8)
    # the input of each linear layer; the ReLU keeps its output, which is the second one's input
    assert bytes_kept_for_backward(model, lambda: model(x)) == 4 * 5 * (8 + 32)


def test_attention_by_hand_keeps_score_matrices_and_their_number_grows_with_the_square():
    def kept(num_tokens):
        module = MultiHeadAttention(16, 16, 512, 0.0, 4).to("meta")
        x = torch.zeros(1, num_tokens, 16, device="meta")
        return bytes_kept_for_backward(module, lambda: module(x))

    pairs = 4 * 4 * 256 * 256  # bytes of one (heads, 256, 256) matrix in float32
    assert kept(256) > pairs
    assert 3.5 < kept(512) / kept(256) < 4.1


def test_memory_of_a_training_step_is_what_adamw_and_autograd_hold():
    model = GPTModel(SMALL)
    ids = torch.randint(0, 50257, (2, 32))
    sizes = training_memory(model, lambda: loss_of(model, ids))
    meta_model, meta_ids = on_meta(SMALL, shape=(2, 32))
    assert sizes == training_memory(meta_model, lambda: loss_of(meta_model, meta_ids))

    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model, ids).backward()
    optimizer.step()
    gradients = sum(p.grad.nbytes for p in model.parameters())
    moments = sum(
        state[name].nbytes for state in optimizer.state.values() for name in state if name != "step"
    )
    assert (sizes["gradients"], sizes["AdamW"]) == (gradients, moments)
    assert sizes["buffers"] == 2 * 4 * 32 * 32  # a mask of 32 x 32 floats in each layer


def test_frozen_weights_need_neither_gradients_nor_an_optimizers_state():
    model = GPTModel(SMALL).requires_grad_(False)
    model.out_head.requires_grad_(True)
    ids = torch.randint(0, 50257, (2, 32))
    sizes = training_memory(model, lambda: loss_of(model, ids))
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model, ids).backward()
    optimizer.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = sum(
        state[name].nbytes for state in optimizer.state.values() for name in state if name != "step"
    )
    assert (sizes["gradients"], sizes["AdamW"]) == (gradients, moments)
    assert gradients == model.out_head.weight.nbytes < sizes["weights"]


def test_ceiling_and_seconds_are_positive_and_sensible():
    a = torch.randn(128, 128)
    assert 0 < seconds_of(lambda: a @ a) < 10
    assert 1e7 < matmul_ceiling(size=128, rounds=3) < 1e16
