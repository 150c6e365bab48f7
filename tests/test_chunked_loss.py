"""Chunked cross entropy is PyTorch's own, and never has the logits of all rows in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llms_from_scratch.chunked_loss import chunked_cross_entropy

N, EMB, VOCAB = 21, 16, 61


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any tensor has while the mode is on."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
        return result


def inputs(dtype=torch.float64, shape=(3, 7)):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, EMB, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, EMB, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, shape, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def in_one_piece(hidden, weight, targets, **options):
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **options)


def loss_and_gradients(function, hidden, weight, targets, factor=1.0, **options):
    loss = function(hidden, weight, targets, **options)
    return loss.detach(), *torch.autograd.grad(factor * loss, (hidden, weight))


def compare(found, expected, limit):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 20, N, 1000])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_loss_and_gradients_are_those_of_pytorch(chunk_size, dtype, limit, factor):
    expected = loss_and_gradients(in_one_piece, *inputs(dtype), factor)
    found = loss_and_gradients(chunked_cross_entropy, *inputs(dtype), factor, chunk_size=chunk_size)
    compare(found, expected, limit)


@pytest.mark.parametrize("ignore_index", [-100, 5])
def test_ignored_targets_count_neither_in_the_sum_nor_in_the_number(ignore_index):
    hidden, weight, targets = inputs()
    targets[0, 1:5] = ignore_index
    targets[2] = ignore_index  # several whole chunks
    arguments = hidden, weight, targets
    options = {"ignore_index": ignore_index}
    expected = loss_and_gradients(in_one_piece, *arguments, **options)
    found = loss_and_gradients(chunked_cross_entropy, *arguments, chunk_size=3, **options)
    compare(found, expected, 1e-12)


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets = inputs(shape=(4,))
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, w, targets, chunk_size=3), (hidden, weight)
    )


def test_padding_of_the_vocabulary_changes_nothing_and_gets_no_gradient():
    hidden, weight, targets = inputs()
    expected = loss_and_gradients(in_one_piece, hidden, weight, targets)
    padded = torch.cat([weight.detach(), torch.full((3, EMB), 9.0)]).requires_grad_()
    arguments = hidden, padded, targets
    loss, d_hidden, d_padded = loss_and_gradients(
        chunked_cross_entropy, *arguments, chunk_size=4, num_classes=VOCAB
    )
    compare((loss, d_hidden, d_padded[:VOCAB]), expected, 1e-12)
    assert d_padded[VOCAB:].abs().max() == 0


def test_weights_tied_to_the_embedding_get_both_gradients():
    ids, targets = inputs()[2], inputs()[2].flip(0)
    gradients = []
    for function in (in_one_piece, chunked_cross_entropy):
        embedding = inputs()[1]
        function(F.embedding(ids, embedding).tanh(), embedding, targets).backward()
        gradients.append(embedding.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_inputs_need_not_be_contiguous():
    hidden, weight, targets = inputs()
    expected = loss_and_gradients(in_one_piece, hidden, weight, targets)
    crossed = hidden.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    column_major = weight.detach().T.contiguous().T.requires_grad_()
    arguments = crossed, column_major, targets.T.contiguous().T
    assert not any(tensor.is_contiguous() for tensor in arguments)
    compare(loss_and_gradients(chunked_cross_entropy, *arguments, chunk_size=4), expected, 1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_right_one(frozen):
    arguments = inputs()
    expected = loss_and_gradients(in_one_piece, *arguments)[1:]
    arguments[frozen].requires_grad_(False)
    chunked_cross_entropy(*arguments, chunk_size=4).backward()
    assert arguments[frozen].grad is None
    torch.testing.assert_close(arguments[1 - frozen].grad, expected[1 - frozen])


def test_without_gradients_only_the_loss_is_computed():
    arguments = inputs()
    with torch.no_grad():
        loss = chunked_cross_entropy(*arguments, chunk_size=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, in_one_piece(*arguments).detach())


@pytest.mark.parametrize("chunk_size", [2, 64])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_as_close_to_the_exact_gradient_as_pytorchs_own(chunk_size, autocast):
    exact = loss_and_gradients(in_one_piece, *inputs())
    arguments = inputs(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs = loss_and_gradients(in_one_piece, *arguments)
        ours = loss_and_gradients(chunked_cross_entropy, *arguments, chunk_size=chunk_size)
    assert ours[0].dtype == torch.float32  # PyTorch's is bfloat16 where the inputs are
    assert [g.dtype for g in ours[1:]] == [g.dtype for g in theirs[1:]]
    for found, other, right in zip(ours, theirs, exact, strict=True):
        error, their_error = ((g.double() - right).norm() / right.norm() for g in (found, other))
        assert error < max(1.1 * their_error, 0.006)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_no_tensor_ever_has_as_many_elements_as_all_logits(with_gradient):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 8, generator=generator, requires_grad=True)
    weight = torch.randn(1000, 8, generator=generator, requires_grad=True)
    targets = torch.randint(1000, (64,), generator=generator)
    largest = {}
    for name, function, options in (
        ("in one piece", in_one_piece, {}),
        ("chunked", chunked_cross_entropy, {"chunk_size": 4}),
    ):
        with LargestTensor() as seen, torch.set_grad_enabled(with_gradient):
            loss = function(hidden, weight, targets, **options)
            if with_gradient:
                loss.backward()
        largest[name] = seen.numel
    assert largest["in one piece"] == 64 * 1000
    assert largest["chunked"] == 1000 * 8  # the weights themselves


def test_a_batch_whose_targets_are_all_ignored_is_named():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"all 21 targets are ignored \(ignore_index -100\)"):
        chunked_cross_entropy(hidden, weight, torch.full_like(targets, -100))


@pytest.mark.parametrize("target", [-1, VOCAB])
def test_a_target_that_is_no_class_is_named(target):
    hidden, weight, targets = inputs()
    targets[1, 2] = target
    with pytest.raises(ValueError, match=rf"target {target} is no class, 0 to {VOCAB - 1}"):
        chunked_cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_classes": 62}, "num_classes must be from 1 to 61, got 62"),
        ({"weight": torch.ones(VOCAB, 8)}, r"\(3, 7, 16\) and weight \(61, 8\) do not fit"),
        ({"targets": torch.ones(3, 6, dtype=torch.long)}, r"\(3, 7, 16\), targets are \(3, 6\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    arguments = dict(zip(("hidden", "weight", "targets"), inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(**(arguments | change))
