"""The one decoding loop: chooses like ``transformers``, and each row as if it were alone."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as peers

from llms_from_scratch import ch05
from llms_from_scratch.appendix_e import replace_linear_with_lora
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.generate import (
    Sampling,
    TextStream,
    generate,
    generate_text,
    generate_tokens,
    penalize,
    stream_text,
    trim_input_tensor,
)
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.kv_cache.gpt2 import GPTModel as CachedGPT
from llms_from_scratch.kv_cache.simple import GrowingCacheGPT
from llms_from_scratch.llama3 import Llama3Model
from llms_from_scratch.tokenizer import get_tokenizer

GPT = {
    "vocab_size": 61,
    "context_length": 24,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
LLAMA = {
    "vocab_size": 61,
    "context_length": 24,
    "emb_dim": 16,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 24,
    "n_kv_groups": 2,
    "rope_base": 500.0,
    "dtype": torch.float32,
}
TOKENIZER = get_tokenizer("gpt2")


def model_of(cls, cfg, seed=0):
    torch.manual_seed(seed)
    model = cls(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=["gpt", "fast", "llama"])
def model(request):
    cls, cfg = {"gpt": (GPTModel, GPT), "fast": (GPTModelFast, GPT), "llama": (Llama3Model, LLAMA)}[
        request.param
    ]
    return model_of(cls, cfg)


def prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]


# --- The loop ---


@pytest.mark.parametrize("new_tokens", [1, 10, 40])
def test_a_batch_of_unequal_prompts_gets_what_the_books_loop_writes_for_each(model, new_tokens):
    batch = prompts(1, 7, 3, 24, 30)
    wanted = [
        ch05.generate(model, torch.tensor([p]), new_tokens, 24)[0, len(p) :].tolist() for p in batch
    ]
    assert generate(model, batch, new_tokens) == wanted
    assert generate(model, batch, new_tokens, use_cache=False) == wanted


def test_rows_end_at_stop_ids_at_a_full_context_and_by_the_callback(model):
    batch = prompts(5, 9, 22, 2)
    endless = generate(model, batch, 15)
    stop = endless[0][6]
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in endless]
    assert generate(model, batch, 15, stop_ids=(stop, 60)) == [
        ids[: ids.index(60)] if 60 in ids else ids for ids in expected
    ]
    full = generate(model, batch, 15, stop_when_full=True)
    assert full == [ids[: 24 - len(p)] for ids, p in zip(endless, batch, strict=True)]
    seen = []
    called = generate(model, batch, 15, on_token=lambda row, t: seen.append((row, t)) or row == 1)
    assert called == [ids if row != 1 else ids[:1] for row, ids in enumerate(endless)]
    assert sorted(seen) == sorted((row, t) for row, ids in enumerate(called) for t in ids)


def test_a_row_draws_the_same_in_any_company_and_another_seed_draws_otherwise(model):
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
    batch = prompts(4, 9, 2)
    together = generate(model, batch, 12, sampling, seed=[7, 8, 9])
    alone = [generate(model, [p], 12, sampling, seed=7 + i)[0] for i, p in enumerate(batch)]
    assert together == alone == generate(model, batch, 12, sampling, seed=7)
    assert generate(model, batch, 12, sampling, seed=100) != together
    before = torch.get_rng_state()
    generate(model, batch, 3, sampling, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_steps_arrive_one_by_one_and_the_models_mode_comes_back(model):
    whole = generate(model, prompts(3, 5), 4)
    model.train()
    steps = generate_tokens(model, prompts(3, 5), 4)
    assert next(steps) == [ids[0] for ids in whole]  # without dropout
    steps.close()
    assert model.training
    model.eval()
    assert [list(step) for step in zip(*whole, strict=True)] == list(
        generate_tokens(model, prompts(3, 5), 4)
    )
    assert not model.training


def test_lora_layers_classifier_heads_and_models_of_ones_own_are_generated_with():
    model = model_of(GPTModel, GPT)
    replace_linear_with_lora(model, rank=2, alpha=4)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B"):
            torch.nn.init.normal_(parameter)

    class Own(torch.nn.Module):  # no cache, no cfg
        def __init__(self):
            super().__init__()
            self.inner, self.tok_emb, self.pos_emb = model, model.tok_emb, model.pos_emb

        def forward(self, ids):
            return self.inner(ids)

    batch = prompts(3, 8)
    wanted = [ch05.generate(model, torch.tensor([p]), 9, 24)[0, len(p) :].tolist() for p in batch]
    assert generate(model, batch, 9) == wanted == generate(Own(), batch, 9)


def test_autocast_and_a_change_between_inference_and_no_grad_work(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert len(generate(model, prompts(3, 6), 5)[1]) == 5
    if isinstance(model, Llama3Model):
        cache, ids = KVCache.for_model(model), torch.tensor(prompts(6))
        with torch.inference_mode():
            first = model(ids[:, :4], cache=cache)
        with torch.no_grad():
            second = model(ids[:, 4:], cache=cache)
            wanted = model(ids)
        torch.testing.assert_close(torch.cat([first, second], 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 8, 24, 100])
def test_a_cache_smaller_than_the_context_is_a_window_with_and_without_cache(window):
    cfg = GPT | {"kv_window_size": window}
    ids = torch.tensor(prompts(20))
    whole = model_of(GPTModel, GPT)
    for cls in (CachedGPT, GrowingCacheGPT):
        model = model_of(cls, cfg)
        with torch.no_grad():
            plain = model(ids)
            model.reset_kv_cache()
            pieces = [model(piece, use_cache=True) for piece in ids.split([6, 1, 1, 9, 3], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), plain, rtol=1e-5, atol=1e-5)
        if window >= 20:
            torch.testing.assert_close(plain, whole(ids), rtol=1e-5, atol=1e-5)
    cache = KVCache.for_model(model_of(CachedGPT, cfg))
    with torch.no_grad():
        for piece in ids.split(1, dim=1):
            model_of(CachedGPT, cfg)(piece, cache=cache)
    assert cache.get(0)[0].shape[2] == min(20, window - 1) if window < 24 else True


# --- Choosing ---


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([None, 1, 5, 30]),
    st.sampled_from([None, 0.2, 0.9]),
    st.sampled_from([None, 0.05, 0.5]),
    st.sampled_from([0.7, 1.0, 1.7]),
)
def test_tokens_that_can_be_drawn_are_those_of_transformers(seed, heat, top_k, top_p, min_p, rep):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed)) * 2
    text = torch.arange(0, 12)
    wanted = peers.RepetitionPenaltyLogitsProcessor(rep)(text[None], logits.clone())
    torch.testing.assert_close(penalize(logits[0], text, rep), wanted[0])
    wanted = peers.TemperatureLogitsWarper(heat)(text[None], wanted)
    if min_p:
        wanted = peers.MinPLogitsWarper(min_p)(text[None], wanted)
    if top_k:
        wanted = peers.TopKLogitsWarper(top_k)(text[None], wanted)
    if top_p:
        wanted = peers.TopPLogitsWarper(top_p)(text[None], wanted)
    possible = set(wanted[0].isfinite().nonzero().flatten().tolist())
    sampling = Sampling(heat, top_k, top_p, min_p, rep)
    rows = 400
    drawn = sampling.choose(
        logits.expand(rows, -1),
        lambda: [text] * rows,
        [torch.Generator().manual_seed(seed + i) for i in range(rows)],
    )
    assert set(drawn.flatten().tolist()) <= possible
    likely = torch.softmax(wanted[0], 0)
    assert {int(i) for i in (likely > 0.05).nonzero()} <= set(drawn.flatten().tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.nan}, "temperature must be 0 .* got nan"),
        ({"temperature": 1e-320}, "temperature must be 0 .* got 1e-320"),
        ({"top_k": -3}, "top_k must be a whole number .* got -3"),
        ({"top_p": 2.0}, "top_p must be from 0 to 1, got 2.0"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, got -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0 .* got 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be above 0 .* got inf"),
    ],
)
def test_ways_of_choosing_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], 3), "there is no prompt"),
        (([[1], []], 3), "prompt 1 is empty"),
        (([[1], [61]], 3), "prompt 1 has token id 61, outside of the model's vocabulary, 0 to 60"),
        (([[-1]], 3), "prompt 0 has token id -1"),
        (([[1]], -1), "max_new_tokens must not be negative, got -1"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_the_first_step(model, request_, message):
    with pytest.raises(ValueError, match=message):
        generate_tokens(model, *request_)  # not even begun
    with pytest.raises(ValueError, match="context_size must be at least 1, got 0"):
        generate_tokens(model, [[1]], 3, context_size=0)
    with pytest.raises(ValueError, match="one for each of 1 prompts; got 2"):
        generate_tokens(model, [[1]], 3, seed=[1, 2])


def test_damaged_weights_are_noticed_at_the_first_token(model):
    weight = model.out_head.weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight[5] = math.nan
    try:
        with pytest.raises(ValueError, match="the logits have no finite maximum"):
            generate(model, [[1, 2]], 3)
    finally:
        with torch.no_grad():
            weight.copy_(old)


def test_trimming_leaves_room_for_the_new_tokens():
    ids = torch.arange(20)[None]
    assert trim_input_tensor(ids, 12, 4).tolist() == [list(range(12, 20))]
    assert trim_input_tensor(ids, 40, 4).shape == (1, 20)
    with pytest.raises(ValueError, match="12 new tokens leave no room .* context of 12"):
        trim_input_tensor(ids, 12, 12)


# --- Text ---


def test_ids_that_only_fill_up_a_vocabulary_have_no_text():
    ids = TOKENIZER.encode("A caf\u00e9")
    middle = len(ids) - 1  # between the two bytes of the last character
    stream = TextStream(TOKENIZER)
    pieces = [stream.add(token_id) for token_id in [*ids[:middle], 50_257, *ids[middle:], 151_935]]
    assert "".join(pieces) + stream.rest() == "A caf\u00e9"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_a_stream_gives_the_text_up_to_the_first_stop_string(text, stops):
    stream = TextStream(TOKENIZER, stops)
    pieces = []
    for token_id in TOKENIZER.encode_ordinary(text):
        pieces.append(stream.add(token_id))
        if stream.stopped:
            break
    pieces.append(stream.rest())
    ends = [text.find(stop) for stop in stops if stop in text]
    # A stop that is complete with an earlier token wins over one that begins further left
    result = "".join(pieces)
    assert text.startswith(result)
    assert (len(result) < len(text)) == bool(ends)
    assert not ends or len(result) in ends
    assert not any(stop in result for stop in stops)


def test_text_goes_in_and_comes_out_with_stop_strings():
    cfg = GPT | {"vocab_size": 50257}
    model = model_of(GPTModel, cfg)
    whole = generate_text(model, TOKENIZER, "Every effort", 12)
    assert "".join(stream_text(model, TOKENIZER, "Every effort", 12)) == whole
    stop = whole[8:11]
    wanted = whole[: whole.index(stop)]
    assert generate_text(model, TOKENIZER, "Every effort", 12, stop_strings=[stop]) == wanted
    both = generate_text(model, TOKENIZER, ["Every effort", "Every"], 12, stop_strings=[stop])
    assert both[0] == wanted and len(both) == 2
    ids = TOKENIZER.encode_ordinary("<|endoftext|>")
    assert 50256 not in ids  # a user's text is never special
    assert generate_text(model, TOKENIZER, "<|endoftext|>", 3) == TOKENIZER.decode(
        generate(model, [ids], 3)[0]
    )


def test_greedy_text_of_a_gpt2_equals_that_of_transformers():
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=61, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()  # fmt: skip
    from llms_from_scratch.weights.gpt2 import load_gpt2
    from llms_from_scratch.weights.sources import from_dict

    ours = GPTModel(GPT | {"context_length": 64})
    load_gpt2(ours, from_dict(theirs.state_dict(), "twin"))
    ids = torch.tensor(prompts(5, 5))
    wanted = theirs.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[:, 5:]
    assert generate(ours, ids.tolist(), 40) == wanted.tolist()
