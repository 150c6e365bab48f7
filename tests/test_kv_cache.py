"""Generation with a cache: the same tokens as without, at the price of one token per step."""

import pytest
import torch

from llms_from_scratch.blocks.linear import apply_layer
from llms_from_scratch.ch04 import GPTModel, generate_text_simple
from llms_from_scratch.kv_cache import KVCache, left_pad
from llms_from_scratch.kv_cache.generate import generate_text_simple as cached
from llms_from_scratch.kv_cache.generate import generate_text_simple_stream as stream
from llms_from_scratch.kv_cache.gpt2 import GPTModel as CachedGPT
from llms_from_scratch.kv_cache.simple import GrowingCacheGPT, generate_text_simple_cached
from llms_from_scratch.weights.pretrained import load_pretrained

TINY = {
    "vocab_size": 97,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}


def model_of(cls, seed=123, **changes):
    """A model away from its start, where all logits are alike, with dropout to forget."""
    torch.manual_seed(seed)
    model = cls(TINY | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def twins(seed=123, **changes):
    return model_of(GPTModel, seed, **changes), model_of(CachedGPT, seed, **changes)


def ids(b, n, seed=0):
    return torch.randint(0, 97, (b, n), generator=torch.Generator().manual_seed(seed))


def calls_of(model):
    """A list that grows by the number of tokens shown, whenever the model is called."""
    calls = []
    model.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    return calls


# --- The same model ---


@pytest.mark.parametrize("cls", [CachedGPT, GrowingCacheGPT])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_weights_have_the_names_and_the_values_of_the_same_seed_in_chapter_4(cls, qkv_bias):
    plain, ours = (model_of(c, qkv_bias=qkv_bias).state_dict() for c in (GPTModel, cls))
    assert list(plain) == list(ours)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


@pytest.mark.parametrize("cls", [CachedGPT, GrowingCacheGPT])
def test_logits_of_pieces_equal_those_of_the_whole(cls):
    plain, model, whole = model_of(GPTModel).double(), model_of(cls).double(), ids(3, 16)
    with torch.no_grad():
        wanted = plain(whole)
        for sizes in ([16], [5, 1, 1, 9], [1] * 16, [8, 8]):
            model.reset_kv_cache()
            pieces = [model(piece, use_cache=True) for piece in whole.split(sizes, dim=1)]
            assert model.current_pos == 16
            torch.testing.assert_close(torch.cat(pieces, dim=1), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(model(whole), wanted, rtol=0, atol=1e-12)


def test_gradients_flow_as_in_chapter_4_without_a_cache():
    plain, model = (m.double() for m in twins())
    for m in (plain, model):
        m(ids(2, 16)).logsumexp(-1).sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10, msg=name)


# --- The same tokens ---


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompt_length", [1, 5, 16, 25])
def test_cached_text_equals_recomputed_text_also_past_the_context(seed, prompt_length):
    plain, model = twins(seed)
    prompt = ids(2, prompt_length, seed)
    wanted = generate_text_simple(plain, prompt, 30, context_size=16)
    assert torch.equal(cached(model, prompt, 30), wanted)
    assert torch.equal(cached(model, prompt, 30, use_cache=False), wanted)
    simple = model_of(GrowingCacheGPT, seed)
    assert torch.equal(generate_text_simple_cached(simple, prompt, 30), wanted)
    assert torch.equal(generate_text_simple_cached(simple, prompt, 30, use_cache=False), wanted)


@pytest.mark.parametrize("context_size", [1, 4, 15, 20])
def test_windows_smaller_or_larger_than_prompt_and_context(context_size):
    plain, model = twins()
    prompt = ids(1, 10)
    wanted = generate_text_simple(plain, prompt, 20, min(context_size, 16))
    assert torch.equal(cached(model, prompt, 20, context_size), wanted)
    simple = model_of(GrowingCacheGPT)
    assert torch.equal(generate_text_simple_cached(simple, prompt, 20, context_size), wanted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_unequal_length_get_the_text_they_get_alone(seed, use_cache):
    plain, model = twins(seed)
    prompts = [ids(1, n, seed + n)[0].tolist() for n in (3, 9, 1, 20)]
    idx, lengths = left_pad(prompts, pad_id=seed)
    texts = cached(model, idx, 30, use_cache=use_cache, lengths=lengths)
    for text, prompt in zip(texts, prompts, strict=True):
        wanted = generate_text_simple(plain, torch.tensor([prompt]), 30, context_size=16)
        assert text[20 - len(prompt) :].tolist() == wanted[0].tolist()


def test_what_the_padding_is_does_not_matter():
    model = model_of(CachedGPT)
    texts = []
    for pad_id in (0, 50, 96):
        idx, lengths = left_pad([[1, 2, 3], [4]], pad_id)
        texts.append(cached(model, idx, 8, lengths=lengths)[:, 3:])
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


def test_bfloat16_caches_bfloat16_and_differs_by_rounding_only():
    plain, model = (m.bfloat16() for m in twins())
    prompt = ids(2, 5)
    text = cached(model, prompt, 30)
    for end in range(5, 35):  # the token chosen is the best for chapter 4's model, to rounding
        with torch.no_grad():
            logits = plain(text[:, :end][:, -16:])[:, -1].float()
        chosen = logits.gather(1, text[:, end : end + 1])[:, 0]
        assert (logits.max(dim=1).values - chosen <= 0.02 * logits.abs().max()).all()
    cache = KVCache(2)
    with torch.no_grad():
        model(prompt, cache=cache)
    assert cache.get(1)[0].dtype == torch.bfloat16
    assert cache.nbytes == 2 * 2 * (2 * 16 * 24) * 2  # layers, k and v, numbers, bytes


def test_a_trained_model_loads_and_writes_the_same_text():
    plain, model = (load_pretrained("gpt2-tiny", cls).model for cls in (GPTModel, CachedGPT))
    prompt = torch.tensor([[6109, 3626, 6100, 345]])
    assert torch.equal(cached(model, prompt, 25), generate_text_simple(plain, prompt, 25, 256))


# --- The price ---


@pytest.mark.parametrize("generate", [cached, generate_text_simple_cached])
def test_each_step_shows_one_token_and_none_follows_the_last(generate):
    model = model_of(CachedGPT)
    calls = calls_of(model)
    generate(model, ids(1, 5), 10)
    assert calls == [5, *[1] * 9]
    calls.clear()
    generate(model, ids(1, 15), 4)
    assert calls == [15, 1, 16, 16]  # the window has moved: all positions are others
    calls.clear()
    assert generate(model, ids(1, 5), 0).shape == (1, 5) and calls == []


def test_the_memory_of_the_cache_stays_where_it_is():
    model, cache = model_of(CachedGPT), KVCache(2, capacity=12)
    places = set()
    with torch.no_grad():
        for i in range(12):
            model(ids(2, 1, i), cache=cache)
            places.add(tuple(t.data_ptr() for pair in cache.get_all() for t in pair))
    assert len(places) == 1
    assert cache.get(0)[0].shape == (2, 3, 12, 8)


# --- State ---


def test_a_call_without_cache_leaves_the_cache_alone():
    plain, model = twins()
    whole = ids(2, 12)
    with torch.no_grad():
        first = model(whole[:, :6], use_cache=True)
        model(ids(3, 9, seed=5))
        cached(model, ids(1, 3), 4)
        second = model(whole[:, 6:], use_cache=True)
        together = torch.cat([first, second], dim=1)
        torch.testing.assert_close(together, plain(whole), rtol=0, atol=1e-4)


@pytest.mark.parametrize("cls", [CachedGPT, GrowingCacheGPT])
def test_after_a_reset_nothing_is_left_of_the_text_before(cls):
    model = model_of(cls)
    with torch.no_grad():
        wanted = model(ids(1, 7))
        model(ids(2, 9, seed=3), use_cache=True)
        assert model.current_pos == 9
        model.reset_kv_cache()
        assert model.current_pos == 0
        given = model(ids(1, 7), use_cache=True)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


def test_a_cache_is_used_again_for_other_rows_and_another_dtype_after_reset():
    model, cache = model_of(CachedGPT), KVCache(2)
    with torch.no_grad():
        for b, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.float64)):
            cache.reset()
            model.to(dtype)(ids(b, 4), cache=cache)
            assert cache.get(0)[1].shape == (b, 3, 4, 8) and cache.get(0)[1].dtype == dtype


def test_caches_are_no_part_of_the_state_dict():
    model = model_of(CachedGPT)
    names = list(model.state_dict())
    with torch.no_grad():
        model(ids(1, 4), use_cache=True)
    assert list(model.state_dict()) == names


def test_generation_leaves_the_mode_of_the_model_as_it_was():
    model = model_of(CachedGPT).train()
    wanted = generate_text_simple(model_of(GPTModel), ids(1, 4), 6, 16)
    assert torch.equal(cached(model, ids(1, 4), 6), wanted)
    assert model.training


# --- Streaming ---


def test_tokens_are_yielded_one_by_one_and_can_be_trained_on():
    model = model_of(CachedGPT)
    pieces = list(stream(model, ids(2, 4), 6))
    assert [piece.shape for piece in pieces] == [(2, 1)] * 6
    assert torch.equal(torch.cat([ids(2, 4), *pieces], dim=1), cached(model, ids(2, 4), 6))
    model(pieces[0]).sum().backward()  # would fail for tensors of inference mode


def test_rows_end_with_the_end_token_and_generation_when_all_have():
    model = model_of(CachedGPT)
    free = torch.cat(list(stream(model, ids(1, 4), 12)), dim=1)[0].tolist()
    eos = free[5]
    given = [piece.item() for piece in stream(model, ids(1, 4), 12, eos_token_id=eos)]
    assert given == free[: free.index(eos)]
    two = torch.cat([ids(1, 4), ids(1, 4, seed=1)])
    both = torch.cat(list(stream(model, two, 12, eos)), dim=1)
    wanted = torch.cat(list(stream(model, two, 12)), dim=1)
    for row, alone in zip(both.tolist(), wanted.tolist(), strict=True):
        end = alone.index(eos) if eos in alone else 12
        assert row[:end] == alone[:end][: len(row)] and set(row[end:]) <= {eos}


# --- Errors ---


@pytest.mark.parametrize(
    ("held", "new", "message"),
    [
        (10, 7, "7 more tokens do not fit: the cache holds 10 of at most 16. Empty it with"),
        (0, 17, "got 17 tokens, but the model's context_length is 16: pass the last 16"),
    ],
)
def test_more_tokens_than_the_context_are_refused_with_the_numbers(held, new, message):
    model = model_of(CachedGPT)
    with torch.no_grad():
        if held:
            model(ids(1, held), use_cache=True)
        with pytest.raises(ValueError, match=message):
            model(ids(1, new), use_cache=True)
    assert model.current_pos == held


def test_a_cache_larger_than_the_context_does_not_make_positions():
    model, cache = model_of(CachedGPT), KVCache(2, capacity=40)
    with torch.no_grad():
        model(ids(1, 16), cache=cache)
        with pytest.raises(ValueError, match="are 17, but the model's context_length is 16"):
            model(ids(1, 1), cache=cache)


def test_the_growing_cache_refuses_too_many_tokens_with_the_numbers():
    model = model_of(GrowingCacheGPT)
    with torch.no_grad():
        model(ids(1, 10), use_cache=True)
        with pytest.raises(ValueError, match="10 tokens in the cache and 7 new ones .* 16: call"):
            model(ids(1, 7), use_cache=True)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m: m(ids(1, 4), use_cache=True), "no gradients: call the model under"),
        (lambda m: cached(m, ids(1, 0), 4), "prompt 0 is empty: generation needs a token"),
        (lambda m: cached(m, ids(1, 3), 4, 0), "context_size must be at least 1, got 0"),
        (
            lambda m: cached(m, ids(2, 3), 4, lengths=torch.tensor([4, 1])),
            r"from 1 to 3, .* got \[4, 1\]",
        ),
        (lambda m: left_pad([[1], []]), "each prompt needs at least one token"),
        (lambda m: KVCache(0), "n_layers=0"),
        (lambda m: KVCache(2, 0), "capacity=0"),
        (lambda m: KVCache(2).check_room(1), "give it a capacity"),
    ],
)
def test_wrong_calls_are_refused_with_a_reason(run, message):
    with pytest.raises(ValueError, match=message):
        run(model_of(CachedGPT))


def test_other_rows_than_those_in_the_cache_are_refused():
    model = model_of(CachedGPT)
    with torch.no_grad():
        model(ids(2, 4), use_cache=True)
        with pytest.raises(ValueError, match="holds 2 rows of torch.float32 .* 3 rows .* reset"):
            model(ids(3, 1), use_cache=True)


# --- All cores for a few tokens ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [8, 24, 97, 2 * 97, 50257])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (4, 1), (5, 1), (2, 4), (3, 3)])
def test_a_layer_in_parts_is_the_layer(shape, d_out, bias):
    torch.set_num_threads(2)
    layer = torch.nn.Linear(16, d_out, bias=bias)
    x = torch.randn(*shape, 16)
    with torch.no_grad():
        torch.testing.assert_close(apply_layer(layer, x), layer(x), rtol=0, atol=1e-5)
        calls = []
        layer.register_forward_hook(lambda *_: calls.append(1))
        apply_layer(layer, x)
    assert calls == [1]  # a layer that somebody looks at is called


def test_text_with_layers_in_parts_equals_recomputed_text():
    torch.set_num_threads(2)
    for seed in range(3):
        plain, model = twins(seed)
        wanted = generate_text_simple(plain, ids(1, 5), 30, context_size=16)
        assert torch.equal(cached(model, ids(1, 5), 30), wanted)
