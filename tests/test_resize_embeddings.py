"""New tokens: their ids, the rows that stand for them, and all that must stay as it was."""

import copy
import functools

import pytest
import tiktoken
import torch
import torch.nn as nn
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from llms_from_scratch.appendix_e import replace_linear_with_lora
from llms_from_scratch.bpe import BPETokenizer, gpt2_bpe_tokenizer
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.ch06 import replace_output_head
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.kv_cache.optimized import CachedGPTModel
from llms_from_scratch.kv_cache.simple import GrowingCacheGPT
from llms_from_scratch.llama2 import Llama2Model
from llms_from_scratch.llama3 import Llama3Model
from llms_from_scratch.new_tokens import extend_tokenizer, resize_token_embeddings
from llms_from_scratch.olmo3 import Olmo3Model
from llms_from_scratch.qwen3 import Qwen3Model
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.utils import import_definitions_from_notebook
from llms_from_scratch.weights.gpt2 import export_to_hub_folder
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.pretrained import load_pretrained

OLD, NEW = 97, 101
COMMON = {"vocab_size": OLD, "context_length": 32, "emb_dim": 24, "n_heads": 4, "n_layers": 2}
GPT = COMMON | {"drop_rate": 0.0, "qkv_bias": True}
SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 6}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": OLD}
SIZES |= {"max_position_embeddings": 32, "pad_token_id": None}
SIZES |= {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def modern(model_class, theirs, **changes):
    """A model class with a configuration that is read from one of transformers'."""
    config = getattr(transformers, f"{theirs}Config")(**(SIZES | changes))
    return model_class, config_from_hub_dict(config.to_dict(), theirs)[1] | {"dtype": torch.float32}


LLAMA2 = COMMON | {"hidden_dim": 32, "dtype": torch.float32}
MODELS = {
    "GPTModel": (GPTModel, GPT),
    "GPTModelFast": (GPTModelFast, GPT),
    "CachedGPTModel": (CachedGPTModel, GPT),
    "GrowingCacheGPT": (GrowingCacheGPT, GPT),
    "Llama2Model": (Llama2Model, LLAMA2),
    "Llama3Model": modern(Llama3Model, "Llama"),
    "Qwen3Model": modern(Qwen3Model, "Qwen3"),
    "Qwen3Model, experts": modern(Qwen3Model, "Qwen3Moe", **EXPERTS, norm_topk_prob=True),
    "Gemma3Model": modern(Gemma3Model, "Gemma3Text", **MIXED),
    "Olmo3Model": modern(Olmo3Model, "Olmo3", **MIXED),
}
all_models = pytest.mark.parametrize("name", MODELS)
tied_and_untied = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def make(name, tied=False, **changes):
    """A small model with all parameters random, norms too, and the dictionary it was made from."""
    model_class, cfg = MODELS[name]
    cfg = cfg | changes
    torch.manual_seed(123)
    model = model_class(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if tied:  # as load_by_names does it, and as a reader does it with a GPT
        model.out_head.weight = model.tok_emb.weight
    return model.eval(), cfg


def hidden_and_logits(model, idx):
    """What goes into the output layer, and what comes out of it."""
    seen = []
    handle = model.final_norm.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        logits = model(idx)
    handle.remove()
    return seen[0], logits


IDX = torch.randint(0, OLD, (2, 9), generator=torch.Generator().manual_seed(5))


# --- The model ---


@all_models
@tied_and_untied
def test_old_rows_keep_their_bits_and_old_tokens_their_logits(name, tied):
    model, _ = make(name, tied)
    before = copy.deepcopy(model)
    resize_token_embeddings(model, NEW)
    changed = ("tok_emb.weight", "out_head.weight")
    for key, tensor in model.state_dict().items():
        old = before.state_dict()[key]
        assert torch.equal(tensor[:OLD] if key in changed else tensor, old), key
    (hidden, logits), (hidden_before, logits_before) = (
        hidden_and_logits(m, IDX) for m in (model, before)
    )
    assert torch.equal(hidden, hidden_before)  # so logits differ by the rounding of BLAS at most
    assert logits.shape == (*IDX.shape, NEW)
    torch.testing.assert_close(logits[..., :OLD], logits_before, rtol=1e-5, atol=1e-5)


@all_models
@tied_and_untied
def test_a_tied_layer_stays_one_tensor_and_an_untied_one_stays_two(name, tied):
    model, _ = make(name, tied)
    count = sum(p.numel() for p in model.parameters())
    resize_token_embeddings(model, NEW)
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    added = (NEW - OLD) * model.cfg["emb_dim"]
    assert sum(p.numel() for p in model.parameters()) == count + added * (1 if tied else 2)
    assert model.out_head.bias is None
    assert (model.tok_emb.num_embeddings, model.out_head.out_features) == (NEW, NEW)


@all_models
@tied_and_untied
def test_new_rows_are_the_mean_so_a_new_logit_is_the_mean_of_the_old_ones(name, tied):
    model, _ = make(name, tied)
    resize_token_embeddings(model, NEW)
    for layer in (model.tok_emb, model.out_head):
        new = layer.weight[OLD:]
        torch.testing.assert_close(new, layer.weight[:OLD].mean(0).expand_as(new))
    _, logits = hidden_and_logits(model, IDX)
    new, old = logits[..., OLD:], logits[..., :OLD]
    torch.testing.assert_close(new, old.mean(-1, keepdim=True).expand_as(new), rtol=1e-4, atol=1e-4)
    assert logits.softmax(-1)[..., OLD:].max() <= (1 + 1e-5) / OLD  # at most the average


@all_models
def test_the_models_cfg_knows_the_size_and_the_callers_dictionary_does_not(name):
    model, cfg = make(name)
    given = copy.deepcopy(cfg)
    model.cfg = cfg
    resize_token_embeddings(model, NEW)
    assert cfg == given
    assert model.cfg == {**given, "vocab_size": NEW}
    again = type(model)(model.cfg).eval()  # a model of this configuration takes the weights
    again.load_state_dict(model.state_dict())
    new_ids = torch.tensor([[OLD, 1, NEW - 1]])
    with torch.no_grad():
        torch.testing.assert_close(again(new_ids), model(new_ids))


@all_models
@tied_and_untied
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_requires_grad_stay(name, tied, dtype):
    model, _ = make(name, tied)
    model.to(dtype)
    model.tok_emb.weight.requires_grad_(False)
    resize_token_embeddings(model, NEW)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.tok_emb.weight.requires_grad
    assert model.out_head.weight.requires_grad == (not tied)
    mean = model.tok_emb.weight[:OLD].double().mean(0)
    torch.testing.assert_close(model.tok_emb.weight[-1], mean.to(dtype))


@all_models
@tied_and_untied
def test_a_model_without_memory_is_resized_on_its_device(name, tied):
    model_class, cfg = MODELS[name]
    with torch.device("meta"):
        model = model_class(cfg)
    if tied:
        model.out_head.weight = model.tok_emb.weight
    resize_token_embeddings(model, NEW)
    assert model.tok_emb.weight.is_meta and model.out_head.weight.shape == (NEW, cfg["emb_dim"])


def test_half_precision_rows_are_averaged_exactly_enough():
    """70,000 rows of 1 add up to infinity in float16, and to 256 in a naive bfloat16 sum."""
    for dtype in (torch.float16, torch.bfloat16):
        model = GPTModel(GPT | {"vocab_size": 70_000, "emb_dim": 4, "n_layers": 1}).to(dtype)
        nn.init.ones_(model.tok_emb.weight)
        resize_token_embeddings(model, 70_001)
        assert model.tok_emb.weight[-1].tolist() == [1.0] * 4


def test_the_random_state_is_not_touched_and_the_same_size_changes_nothing():
    model, _ = make("GPTModel")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    resize_token_embeddings(model, OLD)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    resize_token_embeddings(model, NEW)
    assert torch.equal(torch.get_rng_state(), state)


def test_resizing_twice_is_resizing_once_as_far_as_old_tokens_are_concerned():
    model, _ = make("Llama3Model", tied=True)
    old = model.tok_emb.weight.detach().clone()
    for size in (OLD + 1, NEW, NEW + 40):
        resize_token_embeddings(model, size)
    assert torch.equal(model.tok_emb.weight[:OLD], old)
    torch.testing.assert_close(model.tok_emb.weight[-1], old.mean(0))


@pytest.mark.parametrize("name", ["Llama3Model", "Gemma3Model"])
def test_a_cache_and_new_tokens_go_together(name):
    model, _ = make(name, tied=True)
    resize_token_embeddings(model, NEW)
    idx = torch.tensor([[3, NEW - 1, 7, OLD, 5]])
    with torch.no_grad():
        whole = model(idx)
        cache = KVCache.for_model(model)
        steps = torch.cat([model(idx[:, i : i + 1], cache=cache) for i in range(5)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [OLD - 1, 1, 0, -3, 97.0, 101.5, True, None, "101"])
def test_a_smaller_size_or_none_is_refused_with_the_way_out(size):
    model, _ = make("GPTModel")
    with pytest.raises(ValueError, match=r"new_size is .* at least 97, .* make a smaller model"):
        resize_token_embeddings(model, size)
    assert model.tok_emb.num_embeddings == OLD and model.cfg["vocab_size"] == OLD


def test_a_classifiers_head_and_a_lora_layer_are_refused_and_nothing_is_changed():
    classifier, _ = make("GPTModel")
    replace_output_head(classifier, num_classes=2)
    as_many_classes, _ = make("GPTModel")
    replace_output_head(as_many_classes, num_classes=OLD)  # has a bias, so it is no row per token
    with_lora, _ = make("GPTModel")
    replace_linear_with_lora(with_lora, rank=2, alpha=2)
    for model in (classifier, as_many_classes, with_lora):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match="the output layer, a Linear.*resize before"):
            resize_token_embeddings(model, NEW)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert model.cfg["vocab_size"] == OLD
    with pytest.raises(ValueError, match="DataParallel has no tok_emb"):
        resize_token_embeddings(nn.DataParallel(make("GPTModel")[0]), NEW)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("Llama3Model", "Llama"), ("Qwen3Model", "Qwen3"), ("Olmo3Model", "Olmo3")]
)
def test_shapes_ties_and_parameters_are_those_of_transformers(ours, theirs, tied):
    changes = {"tie_word_embeddings": tied} | (MIXED if theirs == "Olmo3" else {})
    config = getattr(transformers, f"{theirs}Config")(**(SIZES | changes))
    their_model = getattr(transformers, f"{theirs}ForCausalLM")(config)
    model, _ = make(ours, tied)
    with torch.no_grad():
        their_model.get_input_embeddings().weight.copy_(model.tok_emb.weight)
        their_model.get_output_embeddings().weight.copy_(model.out_head.weight)
    their_model.resize_token_embeddings(NEW, mean_resizing=False)
    resize_token_embeddings(model, NEW)
    pairs = [
        (model.tok_emb, their_model.get_input_embeddings()),
        (model.out_head, their_model.get_output_embeddings()),
    ]
    for layer, their_layer in pairs:
        assert layer.weight.shape == their_layer.weight.shape
        assert torch.equal(layer.weight[:OLD], their_layer.weight[:OLD])
    assert model.cfg["vocab_size"] == their_model.config.vocab_size
    assert (pairs[0][0].weight is pairs[1][0].weight) == (pairs[0][1].weight is pairs[1][1].weight)
    count, their_count = (sum(p.numel() for p in m.parameters()) for m in (model, their_model))
    assert count == their_count


def test_a_resized_gpt2_is_exported_tied_and_transformers_computes_the_same(tmp_path):
    model = load_pretrained("gpt2-tiny").model  # two tensors with the same numbers
    resize_token_embeddings(model, 50259)
    assert torch.equal(model.tok_emb.weight, model.out_head.weight)
    export_to_hub_folder(model, model.cfg, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = torch.tensor([[464, 50258, 318, 50257]])
    with torch.no_grad():
        torch.testing.assert_close(model(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)
    again = load_pretrained(tmp_path).model
    assert torch.equal(again.tok_emb.weight, model.tok_emb.weight)


def test_only_new_rows_are_trained_where_gradients_of_old_ones_are_masked():
    model, _ = make("GPTModel", tied=True)
    resize_token_embeddings(model, NEW)
    model.requires_grad_(False)
    weight = model.tok_emb.weight.requires_grad_(True)
    weight.register_hook(lambda grad: grad * (torch.arange(NEW) >= OLD).unsqueeze(1))
    old, new = weight[:OLD].detach().clone(), weight[OLD:].detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0)
    for _ in range(3):
        nn.functional.cross_entropy(model(IDX)[0], torch.arange(OLD - 5, OLD + 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weight[:OLD], old)
    assert (weight[OLD:] != new).all()


# --- The tokenizer ---

TOKENS = ["MyNewToken_1", "MyNewToken_2"]
SAMPLE = "Sample text with MyNewToken_1 and MyNewToken_2. <|endoftext|>"
IDS = [36674, 2420, 351, 220, 50257, 290, 220, 50258, 13, 220, 50256]


@pytest.fixture(scope="module", params=[lambda: get_tokenizer("gpt2"), gpt2_bpe_tokenizer])
def base(request):
    return request.param()


def test_new_tokens_get_the_next_ids_and_come_back_as_text(base):
    extended = extend_tokenizer(base, TOKENS)
    assert type(extended) is type(base)
    assert (base.n_vocab, extended.n_vocab) == (50257, 50259)
    assert extended.encode(SAMPLE, allowed_special={*TOKENS, "<|endoftext|>"}) == IDS
    assert extended.encode(SAMPLE, allowed_special="all") == IDS
    assert extended.decode(IDS) == SAMPLE


def test_texts_without_new_tokens_keep_their_ids(base):
    extended = extend_tokenizer(base, TOKENS)
    text = "Hello, MyNewToken_1 is a new token. <|endoftext|>"
    ids = [15496, 11, 2011, 3791, 30642, 62, 16, 318, 257, 649, 11241, 13, 220, 50256]
    assert base.encode(text, allowed_special={"<|endoftext|>"}) == ids
    for sample in ("MyNewToken", "日本語 🙂\n\n don't", "  12345 <|endoftext|"):
        assert extended.encode(sample) == base.encode(sample)


@functools.cache
def both_extended():
    return [extend_tokenizer(t, TOKENS) for t in (get_tokenizer("gpt2"), gpt2_bpe_tokenizer())]


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*TOKENS, "<|endoftext|>", " ", "a", "My", "\n", "é"]), max_size=8))
def test_both_tokenizers_agree_and_decode_what_they_encode(parts):
    text = "".join(parts)
    by_tiktoken, by_ours = both_extended()
    ids = by_tiktoken.encode(text, allowed_special="all")
    assert by_ours.encode(text, allowed_special="all") == ids
    assert by_ours.decode(ids) == text


def test_what_a_user_writes_is_no_special_token_unless_it_is_allowed(base):
    extended = extend_tokenizer(base, TOKENS)
    with pytest.raises(ValueError, match="MyNewToken_1"):
        extended.encode("I am MyNewToken_1")
    ordinary = extended.encode_ordinary("I am MyNewToken_1")
    assert ordinary == base.encode_ordinary("I am MyNewToken_1") and max(ordinary) < 50256


def test_extending_twice_goes_on_counting_and_the_first_tokenizer_stays(base):
    twice = extend_tokenizer(extend_tokenizer(base, TOKENS), ["<|reply|>"])
    assert twice.n_vocab == 50260
    assert twice.encode("<|reply|>MyNewToken_2", allowed_special="all") == [50259, 50258]
    assert base.encode_ordinary(TOKENS[0]) == base.encode(TOKENS[0])
    assert extend_tokenizer(base, []).n_vocab == 50257


def test_a_trained_tokenizer_is_extended_and_saved(tmp_path):
    own = BPETokenizer.train("low lower lowest " * 10, vocab_size=262)
    extended = extend_tokenizer(own, ["<|user|>"])
    ids = extended.encode("<|user|> lower", allowed_special="all")
    assert ids == [own.n_vocab, *own.encode(" lower")]
    extended.save(tmp_path / "own.json")
    assert BPETokenizer.load(tmp_path / "own.json").encode(" lower") == own.encode(" lower")
    assert extended.to_tiktoken().encode("<|user|> lower", allowed_special="all") == ids


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([""], "no UTF-8 text can have the token ''"),
        (["hello"], "'hello' is in the vocabulary already"),
        (["<|endoftext|>"], "in the vocabulary already"),
        (["<|a|>", "<|a|>"], "given twice"),
        (["Token_1", "Token_10"], "'Token_1' begins 'Token_10'"),
        (["<|end"], "'<\\|end' begins '<\\|endoftext\\|>'"),
        (["half a pair \ud83d"], "UTF-8"),
        ("<|a|>", r"must be a list of texts, not one text: \['<\|a\|>'\]"),
    ],
)
def test_tokens_that_could_not_be_told_apart_are_refused(base, tokens, message):
    with pytest.raises(ValueError, match=message):
        extend_tokenizer(base, tokens)


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="cannot extend a dict"):
        extend_tokenizer({}, ["<|a|>"])


def test_tiktoken_may_take_the_shorter_of_two_tokens_which_is_why_they_are_refused():
    gpt2 = get_tokenizer("gpt2")
    found = []
    for i in range(12):  # which of the two it takes depends on a hash of their letters
        encoding = tiktoken.Encoding(
            name="both",
            pat_str=gpt2._pat_str,
            mergeable_ranks=gpt2._mergeable_ranks,
            special_tokens={f"Mark{i}_1": 50257, f"Mark{i}_10": 50258},
        )
        found += encoding.encode(f"Mark{i}_10", allowed_special="all")
    assert 50257 in found


def test_the_notebook_as_a_module_has_both_functions():
    folder = ROOT / "ch05" / "09_extending-tokenizers"
    notebook = import_definitions_from_notebook(folder, "extend-tiktoken.ipynb")
    model, _ = make("GPTModel")
    notebook.resize_token_embeddings(model, NEW)
    assert model.cfg["vocab_size"] == NEW
    assert notebook.extend_tokenizer(get_tokenizer("gpt2"), TOKENS).n_vocab == 50259
