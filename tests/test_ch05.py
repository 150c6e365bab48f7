"""Chapter 5: decoding does what it says for any batch, and exactly what it says when values tie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TopPLogitsWarper

from llms_from_scratch.ch04 import GPTModel, generate_text_simple
from llms_from_scratch.ch05 import (
    generate,
    generate_stream,
    pick_next_token,
    softmax_with_temperature,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
)
from llms_from_scratch.tokenizer import get_tokenizer

TINY = {
    "vocab_size": 30,
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


@pytest.fixture
def model():
    torch.manual_seed(3)
    return GPTModel(TINY).eval()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draws(logits, n=3000, **options):
    """The ids that n draws from one row of logits give."""
    return pick_next_token(logits.expand(n, -1), generator=seeded(0), **options).flatten()


class Script(torch.nn.Module):
    """A "model" that writes given rows of tokens, whatever it is shown."""

    def __init__(self, rows, prompt_length):
        super().__init__()
        self.rows, self.prompt_length = torch.tensor(rows), prompt_length

    def forward(self, idx):
        step = idx.shape[1] - self.prompt_length
        logits = torch.zeros(len(idx), idx.shape[1], 30)
        logits[:, -1] = torch.nn.functional.one_hot(self.rows[:, step], 30).float()
        return logits


@pytest.mark.parametrize("top_p", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("top_k", [None, 0, 1, 5, 30, 1000])
def test_temperature_zero_is_argmax_for_every_top_k_and_top_p(model, top_k, top_p):
    ids = torch.randint(0, 30, (3, 4))
    wanted = generate_text_simple(model, ids, 10, context_size=12)
    got = generate(model, ids, 10, 12, temperature=0.0, top_k=top_k, top_p=top_p)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-30}])
def test_the_narrowest_choices_are_argmax_too(model, options):
    ids = torch.randint(0, 30, (3, 4))
    wanted = generate_text_simple(model, ids, 10, context_size=12)
    assert torch.equal(generate(model, ids, 10, 12, **({"temperature": 1.0} | options)), wanted)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_exactly_k_tokens_are_kept_when_values_tie(top_k):
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    assert len(draws(logits, temperature=1.0, top_k=top_k).unique()) == top_k


def test_top_k_keeps_the_best_in_each_row_of_a_batch():
    torch.manual_seed(0)
    logits = torch.randn(4, 30)
    best = logits.topk(3).indices
    for _ in range(200):
        picked = pick_next_token(logits, temperature=2.0, top_k=3)
        assert (picked == best).any(dim=-1).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.floats(0.01, 0.99))
def test_top_p_keeps_the_tokens_that_transformers_keeps(values, top_p):
    logits = torch.tensor([values], dtype=torch.float64)
    logits += torch.arange(len(values)) * 1e-6  # no ties: they may be cut in any order
    kept_by_them = TopPLogitsWarper(top_p)(None, logits).isfinite().flatten()
    cumulative = torch.softmax(logits, -1).sort(descending=True).values.cumsum(-1)
    if (cumulative - top_p).abs().min() < 1e-9:
        return  # on the border, rounding decides
    captured = {}

    def capture(probas, **options):
        captured["probas"] = probas
        return torch.zeros(1, 1, dtype=torch.long)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", capture)
        pick_next_token(logits, temperature=1.0, top_p=top_p)
    assert torch.equal(captured["probas"].flatten() > 0, kept_by_them)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])
    for temperature in (0.5, 1.0, 3.0):
        picked = draws(logits, n=50_000, temperature=temperature)
        shares = torch.bincount(picked, minlength=9) / len(picked)
        wanted = torch.softmax(logits[0] / temperature, dim=-1)
        torch.testing.assert_close(shares, wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1e-8, 0.1, 1.0, 100.0])
def test_softmax_with_temperature_stays_finite_and_sums_to_one(scale, temperature):
    probas = softmax_with_temperature(torch.randn(5, 40) * scale, temperature)
    assert probas.isfinite().all()
    torch.testing.assert_close(probas.sum(-1), torch.ones(5))


def test_softmax_with_temperature_equals_its_definition():
    logits = torch.randn(5, 40, dtype=torch.float64)
    wanted = torch.softmax(logits / 1.7, dim=-1)
    torch.testing.assert_close(softmax_with_temperature(logits, 1.7), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 .* got -1.0"),
        ({"temperature": math.nan}, "temperature must be 0 .* got nan"),
        ({"temperature": math.inf}, "temperature must be 0 .* got inf"),
        ({"temperature": 1e-320}, "temperature must be 0 .* got 1e-320"),
        ({"top_k": -1}, "top_k must be a whole number .* got -1"),
        ({"top_k": 1.5}, "top_k must be a whole number .* got 1.5"),
        ({"top_p": -0.1}, "top_p must be from 0 to 1, got -0.1"),
        ({"top_p": 1.1}, "top_p must be from 0 to 1, got 1.1"),
        ({"top_p": math.nan}, "top_p must be from 0 to 1, got nan"),
    ],
)
def test_meaningless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pick_next_token(torch.zeros(1, 5), **options)


@pytest.mark.parametrize("row", [[1.0, math.nan], [-math.inf, -math.inf], [math.inf, 0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_finite_maximum_are_refused(row, temperature):
    logits = torch.tensor([[1.0, 2.0], row])
    with pytest.raises(ValueError, match="the logits have no finite maximum"):
        pick_next_token(logits, temperature)


def test_each_row_ends_on_its_own_and_is_filled_up():
    rows = [[5, 6, 7, 8], [5, 0, 7, 8], [0, 1, 2, 3]]
    got = generate(Script(rows, 2), torch.full((3, 2), 9), 4, 12, eos_id=0)
    assert got[:, 2:].tolist() == [[5, 6, 7, 8], [5, 0, 0, 0], [0, 0, 0, 0]]


def test_generation_stops_when_all_rows_have_ended_without_appending_the_end():
    rows = [[5, 6, 0, 8], [5, 0, 7, 8]]
    got = generate(Script(rows, 2), torch.full((2, 2), 9), 4, 12, eos_id=0)
    assert got[:, 2:].tolist() == [[5, 6], [5, 0]]
    one = generate(Script([[5, 6, 0, 8]], 2), torch.full((1, 2), 9), 4, 12, eos_id=0)
    assert one[:, 2:].tolist() == [[5, 6]]  # as in the book


def test_a_row_in_a_batch_gives_what_it_gives_alone(model):
    ids = torch.randint(0, 30, (4, 6))
    together = generate(model, ids, 20, 12)
    for row in range(4):
        assert torch.equal(generate(model, ids[row : row + 1], 20, 12), together[row : row + 1])


def test_streaming_yields_the_tokens_of_generate_one_by_one(model):
    ids = torch.randint(0, 30, (2, 4))
    options = {"temperature": 1.0, "top_k": 10, "top_p": 0.9}
    stream = generate_stream(model, ids, 9, 12, **options, generator=seeded(5))
    streamed = torch.cat([ids, *stream], dim=1)
    assert torch.equal(streamed, generate(model, ids, 9, 12, **options, generator=seeded(5)))


def test_streaming_does_no_work_in_advance(model):
    calls = []
    model.register_forward_hook(lambda *args: calls.append(1))
    stream = generate_stream(model, torch.zeros(1, 1, dtype=torch.long), 9, 12)
    assert calls == []
    next(stream)
    assert calls == [1]


def test_a_seeded_generator_repeats_a_text_and_leaves_the_global_state_alone(model):
    ids = torch.zeros(1, 1, dtype=torch.long)
    before = torch.get_rng_state()
    texts = [
        generate(model, ids, 20, 12, temperature=1.0, generator=seeded(seed)).tolist()
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_generation_needs_no_gradients(model):
    out = generate(model, torch.zeros(1, 1, dtype=torch.long), 3, 12, temperature=1.0)
    assert not out.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@given(st.text(max_size=40))
def test_text_survives_the_way_to_ids_and_back(text):
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids = text_to_token_ids(text, get_tokenizer())
    assert ids.dim() == 2 and len(ids) == 1
    assert token_ids_to_text(ids, get_tokenizer()) == text


def test_special_token_and_single_rows_are_understood():
    tokenizer = get_tokenizer()
    assert text_to_token_ids("<|endoftext|>", tokenizer).tolist() == [[50256]]
    assert token_ids_to_text(torch.tensor([40]), tokenizer) == "I"


@pytest.mark.parametrize("function", [generate_text_simple, generate])
@pytest.mark.parametrize(
    ("ids", "max_new_tokens", "context_size", "message"),
    [
        ([[1, 2]], 3, 0, "context_size must be at least 1, got 0"),
        ([[1, 2]], 3, -2, "context_size must be at least 1, got -2"),
        ([[1, 2]], -1, 4, "max_new_tokens must not be negative, got -1"),
        ([1, 2], 3, 4, r"got \(2,\): ids.unsqueeze\(0\) makes a batch"),
        ([[]], 3, 4, r"with at least one token, got \(1, 0\)"),
    ],
)
def test_generation_refuses_what_cannot_be_continued(
    function, ids, max_new_tokens, context_size, message
):
    with pytest.raises(ValueError, match=message):
        function(None, torch.tensor(ids, dtype=torch.long), max_new_tokens, context_size)


def test_training_without_a_single_batch_is_refused():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="the training data have no batch"):
        train_model_simple(model, [], [], optimizer, "cpu", 1, 1, 1, "a", None)
