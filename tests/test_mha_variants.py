"""All ways to write multi-head attention compute chapter 3's function, whatever the widths."""

import pytest
import torch

from llms_from_scratch.ch03 import MultiHeadAttention
from llms_from_scratch.mha_variants import (
    Ch03_MHA,
    Ch03_MHA_Wrapper,
    MHAEinsum,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
    MHAPyTorchScaledDotProduct,
    MHAPyTorchSDPAWithoutFlash,
    MultiHeadAttentionCombinedQKV,
    causal,
    copy_attention_weights,
)

VARIANTS = [
    Ch03_MHA_Wrapper,
    Ch03_MHA,
    MultiHeadAttentionCombinedQKV,
    MHAEinsum,
    MHAPyTorchScaledDotProduct,
    MHAPyTorchSDPAWithoutFlash,
    MHAPyTorchClass,
    MHAPyTorchFlexAttention,
]
SIZES = [  # d_in, d_out, num_heads, num_tokens
    (16, 16, 4, 9),
    (16, 32, 4, 9),
    (24, 8, 2, 12),
    (3, 2, 2, 6),
]
CONTEXT_LENGTH = 12

# FlexAttention warns that it is not compiled
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
each_variant = pytest.mark.parametrize("cls", VARIANTS, ids=lambda cls: cls.__name__)


def build(cls, d_in, d_out, num_heads, dropout=0.0, qkv_bias=False, **options):
    if cls is Ch03_MHA_Wrapper:
        d_out //= num_heads  # the width of one head
    if cls is MHAPyTorchFlexAttention:
        dropout = 0.0
    return cls(
        d_in,
        d_out,
        context_length=CONTEXT_LENGTH,
        dropout=dropout,
        num_heads=num_heads,
        qkv_bias=qkv_bias,
        **options,
    )


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("d_in", "d_out", "num_heads", "num_tokens"), SIZES)
@each_variant
def test_variants_agree_with_chapter_3_to_1e_6(cls, d_in, d_out, num_heads, num_tokens, qkv_bias):
    torch.manual_seed(0)
    reference = MultiHeadAttention(d_in, d_out, CONTEXT_LENGTH, 0.0, num_heads, qkv_bias)
    variant = build(cls, d_in, d_out, num_heads, qkv_bias=qkv_bias)
    copy_attention_weights(reference, variant)
    x = torch.randn(2, num_tokens, d_in)
    with torch.no_grad():
        wanted = reference(x)
        assert variant(x).shape == (2, num_tokens, d_out)
        torch.testing.assert_close(variant(x), wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(variant.eval()(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("d_in", "d_out", "num_heads"), [(768, 768, 12), (768, 1536, 12), (1024, 512, 8)]
)
@each_variant
def test_variants_agree_at_the_books_widths(cls, d_in, d_out, num_heads):
    torch.manual_seed(123)
    reference = MultiHeadAttention(d_in, d_out, CONTEXT_LENGTH, 0.0, num_heads)
    variant = build(cls, d_in, d_out, num_heads)
    copy_attention_weights(reference, variant)
    x = torch.randn(2, 4, d_in)
    with torch.no_grad():
        torch.testing.assert_close(variant(x), reference(x), rtol=0, atol=1e-6)


@each_variant
def test_gradients_of_the_input_agree_with_chapter_3(cls):
    if cls is MHAPyTorchFlexAttention:
        pytest.skip("FlexAttention has no backward pass on a CPU")
    torch.manual_seed(0)
    reference = MultiHeadAttention(12, 16, CONTEXT_LENGTH, 0.0, 4)
    variant = build(cls, 12, 16, 4)
    copy_attention_weights(reference, variant)
    gradients = []
    for module in (reference, variant):
        x = torch.linspace(-1, 1, 2 * 7 * 12).sin().view(2, 7, 12).requires_grad_()
        module(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@each_variant
def test_later_tokens_change_no_earlier_output(cls, training):
    torch.manual_seed(0)
    variant = build(cls, 8, 16, 4).train(training)
    x = torch.randn(2, 10, 8)
    changed = x.clone()
    changed[0, 6:] += 1.0
    with torch.no_grad():
        before, after = variant(x), variant(changed)
    torch.testing.assert_close(after[0, :6], before[0, :6], rtol=0, atol=1e-7)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-7)
    assert not torch.allclose(after[0, 6:], before[0, 6:])
    # ... and earlier tokens do change later outputs, which an inverted mask would prevent
    changed = x.clone()
    changed[0, 0] += 1.0
    with torch.no_grad():
        assert (variant(changed)[0] - before[0]).abs().amax(dim=-1).min() > 1e-4


@each_variant
def test_dropout_acts_in_training_only(cls):
    if cls is MHAPyTorchFlexAttention:
        with pytest.raises(ValueError, match=r"no dropout, got dropout=0.5: use 0.0"):
            cls(8, 8, 2, CONTEXT_LENGTH, dropout=0.5)
        return
    torch.manual_seed(0)
    variant = build(cls, 8, 8, 2, dropout=0.5)
    x = torch.randn(2, 10, 8)
    assert not torch.equal(variant(x), variant(x))
    variant.eval()
    assert torch.equal(variant(x), variant(x))
    plain = build(cls, 8, 8, 2)
    plain.load_state_dict(variant.state_dict())
    torch.testing.assert_close(variant(x), plain(x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("d_in", [8, 6])
def test_pytorchs_module_gives_the_same_without_computing_its_weights(d_in):
    torch.manual_seed(0)
    with_weights = build(MHAPyTorchClass, d_in, 8, 2)
    without = build(MHAPyTorchClass, d_in, 8, 2, need_weights=False)
    without.load_state_dict(with_weights.state_dict())
    x = torch.randn(2, 10, d_in)
    torch.testing.assert_close(with_weights(x), without(x), rtol=0, atol=1e-6)


@each_variant
def test_too_many_tokens_and_heads_that_do_not_fit_are_refused(cls):
    with pytest.raises(ValueError, match="got 13 tokens, but context_length is 12"):
        build(cls, 8, 8, 2)(torch.randn(1, 13, 8))
    if cls is not Ch03_MHA_Wrapper:
        with pytest.raises(ValueError, match="d_out must be divisible by num_heads"):
            build(cls, 8, 9, 2)


@each_variant
def test_weights_that_do_not_fit_are_refused(cls):
    with pytest.raises(ValueError, match="the source has 2 heads, the target 4"):
        copy_attention_weights(MultiHeadAttention(8, 8, 12, 0.0, 2), build(cls, 8, 8, 4))
    for source in (
        MultiHeadAttention(6, 8, 12, 0.0, 2),
        MultiHeadAttention(8, 8, 12, 0.0, 2, qkv_bias=True),
    ):
        with pytest.raises(ValueError, match="the source has a weight or bias"):
            copy_attention_weights(source, build(cls, 8, 8, 2))


def test_other_modules_get_no_weights():
    with pytest.raises(TypeError, match="Linear is none of the attention variants"):
        copy_attention_weights(MultiHeadAttention(8, 8, 12, 0.0, 2), torch.nn.Linear(8, 8))


def test_the_variants_on_pytorchs_causal_kernel_store_no_mask():
    for cls in (MHAPyTorchScaledDotProduct, MHAPyTorchFlexAttention):
        assert not dict(build(cls, 8, 8, 2).named_buffers())


def test_flex_attention_follows_a_change_of_length():
    torch.manual_seed(0)
    variant = build(MHAPyTorchFlexAttention, 8, 8, 2)
    x = torch.randn(1, 9, 8)
    with torch.no_grad():
        whole = variant(x)
        torch.testing.assert_close(variant(x[:, :4]), whole[:, :4], rtol=0, atol=1e-6)
        torch.testing.assert_close(variant(x), whole, rtol=0, atol=0)
    assert causal(0, 0, 3, 3) and not causal(0, 0, 3, 4)


def test_einsum_weights_start_in_the_range_of_a_linear_layer():
    torch.manual_seed(0)
    module = MHAEinsum(64, 128, 4, 0.0, 4, qkv_bias=True)
    for parameter in (module.W_query, module.W_value, module.bias_k):
        assert 0.9 / 8 < parameter.abs().max() <= 1 / 8
