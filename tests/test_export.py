"""``llms-from-scratch export``: other programs compute the same from what it writes."""

import functools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.app.export import whole_folder
from llms_from_scratch.app.exporting import Loaded, export_model, load_any, without_lora
from llms_from_scratch.appendix_e import LinearWithLoRA, replace_linear_with_lora
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.ch06 import replace_output_head, save_classifier
from llms_from_scratch.ch07 import PROMPT_STYLES, save_finetuned
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.gemma4 import Gemma4DenseModel
from llms_from_scratch.llama3 import LLAMA31_ROPE_FREQ, Llama3Model
from llms_from_scratch.olmo3 import Olmo3Model
from llms_from_scratch.qwen3 import Qwen3Model
from llms_from_scratch.qwen3_5 import Qwen3_5Model
from llms_from_scratch.tiny_aya import TinyAyaModel
from llms_from_scratch.tokenizer import GPT2_SPLIT_PATTERN, byte_symbols, get_tokenizer
from llms_from_scratch.weights.chat_formats import (
    ChatFormat,
    ChatMLFormat,
    GemmaFormat,
    HubTokenizer,
    OlmoFormat,
    QwenFormat,
    SmolLM2Format,
)
from llms_from_scratch.weights.chat_templates import modelfile
from llms_from_scratch.weights.export_hub import config_for_hub
from llms_from_scratch.weights.export_tokenizers import tokenizer_json
from llms_from_scratch.weights.gguf import GGUFFile, unpermute
from llms_from_scratch.weights.gguf_models import PATTERNS
from llms_from_scratch.weights.gguf_writer import GGUFTensor, pack_q8_0, write_gguf
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained

VOCAB = 384
GPT = {
    "vocab_size": 61,
    "context_length": 32,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
SHARED = {
    "vocab_size": VOCAB,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 48,
    "n_kv_groups": 2,
    "rope_base": 50_000.0,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "dtype": torch.float32,
}
QWEN = SHARED | {"qk_norm": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = QWEN | WINDOWS | {"rope_local_base": 10_000.0, "query_pre_attn_scalar": 8}
OLMO = {k: v for k, v in SHARED.items() if k != "n_kv_groups"} | {"n_kv_heads": 2} | WINDOWS
AYA = {k: v for k, v in OLMO.items() if k != "rms_norm_eps"} | {"head_dim": 8}
SHARING = {k: v for k, v in OLMO.items() if k not in ("rms_norm_eps", "rope_base")} | {
    "n_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "global_head_dim": 24,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCAB,
    "num_kv_shared_layers": 1,
    "use_double_wide_mlp": True,
    "final_logit_softcap": 20.0,
    "rope_local_base": 10_000.0,
    "rope_global_base": 10_000.0,
    "rope_global_partial_rotary_factor": 0.5,
    "layer_norm_eps": 0.3,
}
DELTA = QWEN | {
    "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 0.5,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_context_length": 16}
OLMO_YARN = {
    "rope_type": "yarn",
    "rope_factor": 4.0,
    "rope_orig_max": 16,
    "rope_attention_factor": 1.3,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}
MODELS = {  # name: model_type, class, configuration
    "llama": ("llama", Llama3Model, SHARED),
    "llama-tied": ("llama", Llama3Model, SHARED | {"tie_embeddings": True}),
    "llama-3.1": ("llama", Llama3Model, SHARED | {"rope_freq": LLAMA31_ROPE_FREQ}),
    "llama-yarn": ("llama", Llama3Model, SHARED | {"rope_scaling": YARN}),
    "llama-linear": (
        "llama",
        Llama3Model,
        SHARED | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "qwen3": ("qwen3", Qwen3Model, QWEN),
    "qwen3-tied": ("qwen3", Qwen3Model, QWEN | {"tie_embeddings": True}),
    "qwen3-moe": ("qwen3_moe", Qwen3Model, QWEN | EXPERTS | {"norm_topk_prob": False}),
    "qwen3-moe-usual": ("qwen3_moe", Qwen3Model, QWEN | EXPERTS),
    "gemma3": ("gemma3_text", Gemma3Model, GEMMA | {"tie_embeddings": True}),
    "gemma3-untied": ("gemma3_text", Gemma3Model, GEMMA),
    "olmo3": ("olmo3", Olmo3Model, OLMO),
    "qwen3.5": ("qwen3_5_text", Qwen3_5Model, DELTA),
    "qwen3.5-tied": ("qwen3_5_text", Qwen3_5Model, DELTA | {"tie_embeddings": True}),
    "gemma4": ("gemma4_text", Gemma4DenseModel, SHARING),
    "gemma4-tied": ("gemma4_text", Gemma4DenseModel, SHARING | {"tie_embeddings": True}),
    "tiny-aya": ("cohere2", TinyAyaModel, AYA | {"logit_scale": 0.25}),
    "tiny-aya-tied": ("cohere2", TinyAyaModel, AYA | {"tie_word_embeddings": True}),
    "olmo3-yarn": ("olmo3", Olmo3Model, OLMO | OLMO_YARN | {"tie_embeddings": True}),
}
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def randomized(model):
    """All parameters random, norms too: ones and zeros would hide swapped tensors."""
    torch.manual_seed(123)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def odd_strings(count: int) -> list[str]:
    rng = random.Random(5)
    pools = [
        "abcdef the ",
        "0123456789 ,.",
        " \t\n\r",
        "äöüßéç ",
        "日本語한국어",
        "😀👍🏽\u0301\u00a0",
    ]
    pools += ["'s't're'LL", "<|im_end|>", "{}[]()=+-*/_#$\"'"]
    return [
        "".join(rng.choice("".join(rng.sample(pools, 2))) for _ in range(rng.randint(0, 40)))
        for _ in range(count)
    ]


@functools.cache
def trained_merges() -> Tokenizer:
    """A small tokenizer of byte pairs, learned from a text."""
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 10, special_tokens=list(MARKS), initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@functools.cache
def byte_pairs(pattern: str = PATTERNS["qwen2"]):
    """The same for tiktoken, special tokens first, as SmolLM2 has them."""
    import tiktoken

    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    vocab = trained_merges().get_vocab()
    special = {mark: vocab.pop(mark) for mark in MARKS}
    ranks = {bytes(byte_of[s] for s in token): i for token, i in vocab.items()}
    return tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def loaded_of(name: str, tokenizer=None, template: str = "") -> Loaded:
    model_type, model_class, cfg = MODELS[name]
    model = randomized(model_class(cfg))
    if cfg.get("tie_embeddings"):
        model.out_head.weight = model.tok_emb.weight
    eos = frozenset({2})
    return Loaded(Pretrained(name, cfg, model, model_type, eos, template, lambda: tokenizer), {})


def export(loaded: Loaded, folder: Path, format: str = "hf", dtype: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    export_model(loaded, folder, format, dtype)
    return folder


@torch.no_grad()
def same_logits(ours, theirs, vocab_size: int = VOCAB) -> None:
    ids = torch.randint(0, vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-5, atol=1e-5)


# --- The hub ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_logits_of_each_kind_of_model(tmp_path, name):
    loaded = loaded_of(name)
    theirs = AutoModelForCausalLM.from_pretrained(export(loaded, tmp_path))
    assert type(theirs).__module__.startswith("transformers.models.")
    same_logits(loaded.pretrained.model, theirs)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("model_class", [GPTModel, GPTModelFast])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_computes_the_logits_of_gpt2(tmp_path, qkv_bias, model_class, tied):
    cfg = GPT | {"qkv_bias": qkv_bias}
    model = randomized(model_class(cfg))
    if tied:
        model.out_head.weight = model.tok_emb.weight
    export(Loaded(Pretrained("mine", cfg, model), {}), tmp_path)
    same_logits(model, AutoModelForCausalLM.from_pretrained(tmp_path), 61)


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again_is_equal_bit_for_bit(tmp_path, name):
    loaded = loaded_of(name, byte_pairs(), CHATML)
    again = load_pretrained(export(loaded, tmp_path / "one"))
    before, after = loaded.pretrained.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.stop_ids == loaded.pretrained.stop_ids and again.template == CHATML
    export(Loaded(again, {}), tmp_path / "two")
    for written in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "one" / written).read_bytes() == (
            tmp_path / "two" / written
        ).read_bytes()
    one, two = (
        json.loads((tmp_path / part / "config.json").read_text(encoding="utf-8"))
        for part in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_that_is_written_reads_back_as_it_was(name):
    model_type, _, cfg = MODELS[name]
    tied = bool(cfg.get("tie_embeddings"))
    written = config_for_hub(model_type, cfg, tied, cfg["dtype"])
    read_type, ours = config_from_hub_dict(written, "config.json")
    assert read_type == model_type
    assert config_for_hub(model_type, ours, tied, cfg["dtype"]) == written
    for key in cfg.keys() & ours.keys() - {"rope_scaling"}:
        assert ours[key] == cfg[key], key
    scaling = ours.get("rope_scaling") or {}
    wanted = cfg.get("rope_scaling") or cfg.get("rope_freq") or {}
    assert scaling | wanted == scaling and bool(scaling) == bool(wanted)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_weights_are_written_in_the_precision_that_is_asked_for(tmp_path, dtype):
    loaded = loaded_of("llama")
    again = load_pretrained(export(loaded, tmp_path, "hf", dtype)).model
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    weight = loaded.pretrained.model.tok_emb.weight.to(kind)
    assert torch.equal(again.tok_emb.weight, weight) and weight.dtype == kind


def test_lora_is_merged_into_what_is_written_and_the_model_stays_as_it_was(tmp_path):
    loaded = loaded_of("llama")
    model = loaded.pretrained.model
    replace_linear_with_lora(model, rank=2, alpha=4)
    randomized(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    same_logits(model, AutoModelForCausalLM.from_pretrained(export(loaded, tmp_path)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(m, LinearWithLoRA) for m in without_lora(model).modules())


def test_weights_that_are_too_large_for_the_wanted_type_are_refused(tmp_path):
    loaded = loaded_of("llama")
    with torch.no_grad():
        loaded.pretrained.model.final_norm.weight[0] = 1e6
    with pytest.raises(ValueError, match="final_norm.weight has the weight 1e.06, beyond 65504"):
        export(loaded, tmp_path, "hf", "F16")


def test_a_chat_template_that_we_do_not_know_is_passed_on(tmp_path):
    loaded = loaded_of("llama", byte_pairs(), "{{ '[INST]' + messages[0]['content'] + '[/INST]' }}")
    theirs = AutoTokenizer.from_pretrained(export(loaded, tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "[INST]hi[/INST]"
    with pytest.raises(ValueError, match="no marks that are known"):
        export(loaded, tmp_path, "ollama")


def test_what_no_configuration_of_the_hub_can_say_is_refused():
    with pytest.raises(ValueError, match="qk_norm=False cannot be written"):
        config_for_hub("qwen3", QWEN | {"qk_norm": False}, True, torch.float32)
    with pytest.raises(ValueError, match="cannot write a 'mamba'"):
        config_for_hub("mamba", QWEN, True, torch.float32)


# --- Tokenizers ---


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), GPT2_SPLIT_PATTERN])
def test_the_tokenizers_library_gives_the_ids_of_tiktoken(tmp_path, pattern):
    ours = byte_pairs(pattern)
    content = json.dumps(tokenizer_json(ours))
    theirs = Tokenizer.from_str(content)
    for text in [*odd_strings(300), "x<|im_end|>y", "<|endoftext|>"]:
        assert theirs.encode(text).ids == ours.encode(text, allowed_special="all"), repr(text)
        ids = ours.encode(text, allowed_special="all")
        assert theirs.decode(ids, skip_special_tokens=False) == text
    theirs.encode_special_tokens = True
    assert theirs.encode("x<|im_end|>").ids == ours.encode_ordinary("x<|im_end|>")


def test_auto_tokenizer_has_the_ids_and_the_conversations_of_ours(tmp_path):
    loaded = loaded_of("qwen3", byte_pairs(), CHATML)
    theirs, ours = AutoTokenizer.from_pretrained(export(loaded, tmp_path)), loaded.pretrained
    for text in odd_strings(100):
        wanted = ours.tokenizer.encode(text, allowed_special="all")
        assert theirs(text)["input_ids"] == wanted, repr(text)
    messages = [{"role": "user", "content": "the end?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|im_start|>user\nthe end?<|im_end|>\n<|im_start|>assistant\n"
    assert theirs.eos_token == "<|im_end|>"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert set(generation.eos_token_id) == ours.stop_ids


def test_a_word_that_no_merges_lead_to_is_a_token_as_for_tiktoken():
    import tiktoken

    ranks = {bytes([b]): b for b in range(256)} | {b"xyz": 256}
    ours = tiktoken.Encoding("own", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={})
    theirs = Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    for text in ("xyz", "xyz xyzz"):
        assert theirs.encode(text).ids == ours.encode_ordinary(text)


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_model_of_chapter_7_goes_out_with_gpt2s_ids_and_its_prompt(tmp_path, style):
    cfg = GPT | {"vocab_size": 50257, "emb_dim": 4, "n_layers": 1}
    run = tmp_path / "run"
    about = {"asset": "instruction-data", "pretrained": "gpt2-tiny"}
    save_finetuned(run, randomized(GPTModelFast(cfg)), cfg, style, **about)
    assert cli(["export", str(run), "--format", "hf", "-o", str(tmp_path / "out")]) == 0
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), get_tokenizer()
    for text in odd_strings(200):
        assert theirs(text)["input_ids"] == ours.encode_ordinary(text), repr(text)
    prompt = PROMPT_STYLES[style].format_input({"instruction": "Say 'hi'\\n.", "input": ""})
    messages = [{"role": "user", "content": "Say 'hi'\\n."}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == prompt + PROMPT_STYLES[style].response_header
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for line in ("license: cc0-1.0", "| Data | instruction-data, Apache-2.0 |", "gpt2-tiny"):
        assert line in card
    same_logits(load_any(str(run)).pretrained.model, _hub(tmp_path / "out"), 50257)


def _hub(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_card_says_what_a_training_run_has_recorded(tmp_path):
    model = GPTModel(GPT)
    settings = {"config": GPT, "updates": 7, "final_val_loss": 3.25}
    settings |= {"settings": {"data": "the-verdict", "learning_rate": 0.5}}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert cli(["export", str(tmp_path), "--format", "hf", "-o", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for words in ("the-verdict, public domain", "| Updates | 7 |", "3.25", "from random weights"):
        assert words in card
    assert "0.5" in card and "license:" not in card


# --- GGUF ---


def theirs_of(path: Path) -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_packed_weights_are_those_of_the_gguf_package(tmp_path, kind):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((37, 96), dtype=np.float32) * 10.0 ** rng.integers(-6, 3, (37, 1))
    weights = weights.astype(np.float32)
    weights[0] = 0
    weights[1, :32] = np.linspace(-127, 127, 32) / 2  # halves, which are rounded away from zero
    write_gguf(tmp_path / "a.gguf", {}, {"w": GGUFTensor(weights.shape, kind, lambda: weights)})
    (tensor,) = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert tensor.tensor_type == Type[kind]
    wanted = gguf.quantize(weights, Type[kind])
    assert tensor.data.tobytes() == wanted.tobytes()
    read = GGUFFile(tmp_path / "a.gguf").read("w").numpy()
    np.testing.assert_array_equal(read, gguf.dequantize(wanted, Type[kind]))


def test_metadata_of_all_types_are_read_back(tmp_path):
    metadata = {"a": "text é", "b": 7, "c": 0.5, "d": True, "e": ["x", ""], "f": [1, -2]}
    metadata |= {"g": [0.5, -1.25]}
    write_gguf(tmp_path / "a.gguf", metadata, {})
    assert GGUFFile(tmp_path / "a.gguf").metadata == metadata
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert {key: fields[key].contents() for key in metadata} == metadata
    for value in ([], [1, "x"], None, -1):
        with pytest.raises(ValueError, match="k is "):
            write_gguf(tmp_path / "b.gguf", {"k": value}, {})


def test_numbers_that_16_bits_cannot_hold_are_refused_with_the_tensors_name(tmp_path):
    tensor = GGUFTensor((1, 32), "F16", lambda: np.full((1, 32), 1e6, np.float32))
    with pytest.raises(ValueError, match="tensor 'w': it has numbers beyond 65,504"):
        write_gguf(tmp_path / "a.gguf", {}, {"w": tensor})
    assert pack_q8_0(np.full(32, 1e6, np.float32)).shape == (1, 34)


GGUF_MODELS = ["llama", "llama-tied", "llama-3.1", "llama-yarn", "llama-linear", "qwen3"]


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_out_to_gguf_and_in_again_is_equal_bit_for_bit(tmp_path, name):
    loaded = loaded_of(name, byte_pairs(), CHATML)
    path = export(loaded, tmp_path, "gguf", "F32") / "model.gguf"
    again = load_pretrained(path)
    before, after = loaded.pretrained.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for text in odd_strings(50):
        assert again.tokenizer.encode_ordinary(text) == byte_pairs().encode_ordinary(text)
    assert again.stop_ids == loaded.pretrained.stop_ids and again.template == CHATML
    ids = torch.arange(24)[None]
    torch.testing.assert_close(again.model(ids), loaded.pretrained.model(ids))


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(tmp_path):
    loaded = loaded_of("llama", byte_pairs())
    stored = theirs_of(export(loaded, tmp_path, "gguf", "F32") / "model.gguf")
    attention = loaded.pretrained.model.trf_blocks[1].att
    for name, weight, heads in (
        ("attn_q", attention.W_query.weight, 4),
        ("attn_k", attention.W_key.weight, 2),
    ):
        rows = torch.from_numpy(stored[f"blk.1.{name}.weight"].copy())
        assert not torch.equal(rows, weight) and torch.equal(unpermute(rows, heads), weight)
    assert np.array_equal(stored["blk.1.attn_v.weight"], attention.W_value.weight.detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "model_class", "cfg"),
    [
        ("llama", Llama3Model, SHARED | {"head_dim": 8}),
        ("qwen3", Qwen3Model, QWEN | {"head_dim": 128}),
    ],
    ids=["llama", "qwen3"],
)
def test_transformers_reads_the_gguf_file_too(tmp_path, model_type, model_class, cfg):
    model = randomized(model_class(cfg))
    made = Pretrained("m", cfg, model, model_type, make_tokenizer=byte_pairs)
    export(Loaded(made, {}), tmp_path, "gguf", "F32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    same_logits(model, theirs)


def sentence_pieces() -> dict:
    """A tokenizer.json as Gemma's, with few pieces."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["\u2581", *"abcdehlort"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("l", "l"), ("h", "e"), ("he", "ll")]
    vocab = {p: i for i, p in enumerate([*pieces, *(a + b for a, b in merges), *letters])}
    added = [
        {"id": i, "content": piece, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, piece in enumerate(pieces[:4])
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges]}
    model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": replace,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def gemma_for_llama_cpp() -> Loaded:
    cfg = GEMMA | {"n_layers": 6, "query_pre_attn_scalar": 16, "tie_embeddings": True}
    cfg |= {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
    model = randomized(Gemma3Model(cfg))
    model.out_head.weight = model.tok_emb.weight
    tokenizer = HubTokenizer.from_content(sentence_pieces(), "<eos>")
    eos = frozenset({1})
    return Loaded(Pretrained("g", cfg, model, "gemma3_text", eos, "", lambda: tokenizer), {})


def test_gemma_goes_to_gguf_with_its_norms_as_llama_cpp_multiplies_by_them(tmp_path):
    loaded = gemma_for_llama_cpp()
    path = export(loaded, tmp_path, "gguf", "F32") / "model.gguf"
    stored, model = theirs_of(path), loaded.pretrained.model
    scale = model.trf_blocks[3].pre_feedforward_layernorm.scale.detach()
    assert np.array_equal(stored["blk.3.ffn_norm.weight"], 1 + scale)
    assert np.array_equal(
        stored["blk.3.attn_q.weight"], model.trf_blocks[3].att.W_query.weight.detach()
    )
    again = load_pretrained(path)
    for text in ("the hello", " the  hell", "zoé\n", "<eos>the"):
        assert again.tokenizer.encode_ordinary(text) == loaded.pretrained.tokenizer.encode_ordinary(
            text
        )
        assert again.tokenizer.encode(text, "all") == loaded.pretrained.tokenizer.encode(
            text, "all"
        )
    ids = torch.arange(24)[None]
    torch.testing.assert_close(again.model(ids), model(ids), rtol=1e-5, atol=1e-5)
    assert GGUFFile(path).metadata["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_gpt2_goes_to_gguf_under_llama_cpps_names(tmp_path, qkv_bias):
    cfg = GPT | {"vocab_size": 50257, "n_layers": 1, "qkv_bias": qkv_bias}
    model = randomized(GPTModel(cfg))
    loaded = Loaded(Pretrained("gpt", cfg, model, make_tokenizer=get_tokenizer), {})
    path = export(loaded, tmp_path, "gguf", "Q8_0") / "model.gguf"
    known = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GPT2]
    names = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in known}
    file = GGUFFile(path)
    assert {name.rpartition(".")[0] for name in file.shapes} == names
    assert file.types["position_embd.weight"] == file.types["blk.0.attn_qkv.bias"] == "F32"
    block = model.trf_blocks[0]
    export(loaded, tmp_path / "F32", "gguf", "F32")
    exact = GGUFFile(tmp_path / "F32" / "model.gguf")
    qkv = [block.att.W_query, block.att.W_key, block.att.W_value]
    stacked = torch.cat([layer.weight for layer in qkv])
    assert torch.equal(exact.read("blk.0.attn_qkv.weight"), stacked)
    assert torch.equal(exact.read("blk.0.attn_output.weight"), block.att.out_proj.weight)
    assert torch.equal(exact.read("blk.0.ffn_up.weight"), block.ff.layers[0].weight)
    assert torch.equal(exact.read("blk.0.ffn_down.weight"), block.ff.layers[2].weight)
    assert torch.equal(exact.read("output.weight"), model.out_head.weight)
    assert exact.read("blk.0.attn_qkv.bias").any() == qkv_bias
    tokens = exact.metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in get_tokenizer().encode("Hello, I am")] == ["Hello", ",", "ĠI", "Ġam"]
    assert exact.metadata["tokenizer.ggml.pre"] == "gpt-2"


REFUSED = [
    ("qwen3-moe", {}, "a qwen3_moe cannot be written as GGUF here"),
    ("olmo3", {}, "a olmo3 cannot be written as GGUF here"),
    ("qwen3.5", {}, "a qwen3_5_text cannot be written as GGUF here"),
    ("gemma4", {}, "a gemma4_text cannot be written as GGUF here"),
    ("tiny-aya", {}, "a cohere2 cannot be written as GGUF here"),
    ("gemma3", {}, "Gemma 3 with layer_types"),
    ("llama-yarn", {"rope_scaling": YARN | {"beta_fast": 9.0}}, "YaRN with beta_fast=9.0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(tmp_path, name, changes, message):
    loaded = loaded_of(name, byte_pairs())
    loaded.pretrained.config = loaded.pretrained.config | changes
    with pytest.raises(ValueError, match=message):
        export(loaded, tmp_path, "gguf")


def test_a_gguf_file_needs_a_tokenizer_that_llama_cpp_knows_and_that_fits(tmp_path):
    with pytest.raises(ValueError, match="came without a tokenizer"):
        export(loaded_of("llama"), tmp_path, "gguf")
    with pytest.raises(ValueError, match="cuts texts in a way that has no name"):
        export(loaded_of("llama", byte_pairs(r"\w+|\W")), tmp_path, "gguf")
    content = sentence_pieces() | {"normalizer": {"type": "Prepend", "prepend": "\u2581"}}
    with pytest.raises(ValueError, match="SentencePiece tokenizer that adds a space"):
        export(loaded_of("llama", HubTokenizer.from_content(content)), tmp_path, "gguf")
    with pytest.raises(ValueError, match="token 50256, but the model only 384 rows"):
        export(loaded_of("llama", get_tokenizer()), tmp_path, "gguf")


# --- Ollama ---


def test_ollama_is_told_the_conversation_and_where_it_ends(tmp_path):
    folder = export(loaded_of("llama", byte_pairs(), CHATML), tmp_path, "ollama")
    text = (folder / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- range .Messages }}<|im_start|>')
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')
    assert (folder / "model.gguf").is_file()


MODELFILE = re.compile(  # Ollama's grammar: an instruction, and a value plain, in " or in \"""
    r"""(FROM|PARAMETER|TEMPLATE|SYSTEM) (?:(stop|temperature|num_ctx) )?"""
    r"""(?:\"""(.*?)\"""|"([^"\n]*)"|([^\s"][^\n]*))\n""",
    re.DOTALL,
)
CHATS = [ChatFormat, ChatMLFormat, GemmaFormat, OlmoFormat, QwenFormat, SmolLM2Format]


def instructions_of(text: str) -> list[tuple[str, str, str]]:
    """A Modelfile's instructions: name, parameter, value; nothing else may be in it."""
    found, position = [], 0
    while position < len(text):
        match = MODELFILE.match(text, position)
        assert match, f"no instruction: {text[position : position + 60]!r}"
        name, parameter, *values = match.groups()
        assert (name == "PARAMETER") == (parameter is not None)
        found.append((name, parameter or "", next(v for v in values if v is not None)))
        position = match.end()
    return found


@pytest.mark.parametrize("asked", [*PROMPT_STYLES, None, *CHATS])
def test_a_modelfile_has_the_instructions_of_ollamas_grammar_and_no_others(asked):
    end = "<|end_of_text|>"
    if isinstance(asked, type):
        marks = ["<|endoftext|>", "<|end_of_text|>", "<think>", "</think>", "<bos>", "<eos>"]
        marks += ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"]
        marks += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]
        asked = asked(SimpleNamespace(special_tokens={m: i for i, m in enumerate(marks)}))
        stops = list(asked.stops)
    else:
        stops = [end] if asked else []
    found = instructions_of(modelfile(asked, end=end))
    names = [name for name, _, _ in found]
    assert found[0] == ("FROM", "", "./model.gguf")
    assert names.count("FROM") == names.count("TEMPLATE") == 1 and names.count("SYSTEM") <= 1
    assert [value for name, key, value in found if key == "stop"] == stops
    system = getattr(asked, "default_system", None)
    assert [value for name, _, value in found if name == "SYSTEM"] == ([system] if system else [])
    template = next(value for name, _, value in found if name == "TEMPLATE")
    assert "{{" in template and template.count("{{") == template.count("}}")
    for stop in stops:
        assert asked is None or stop in template or stop == stops[-1]


@pytest.mark.parametrize("style", [*PROMPT_STYLES, None])
def test_every_action_of_a_go_template_is_closed(style):
    text = modelfile(style)
    opened = text.count("{{- range") + text.count("{{ if")
    assert opened == text.count("{{ end }}") and text.count("{{") == text.count("}}")
    assert ("### Instruction:" in text) == (style == "alpaca")


# --- The command ---


@pytest.fixture
def gpt_file(tmp_path) -> Path:
    """A trained GPT, as ``gpt_train.py`` leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(GPTModel(GPT).state_dict(), folder / "model.pth")
    (folder / "settings.json").write_text(json.dumps({"config": GPT}), encoding="utf-8")
    return folder


def refused(capsys, *words) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as stopped:
        cli(["export", *map(str, words)])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_overwritten_without_force(gpt_file, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(gpt_file), "--format", "hf", "-o", str(out)]
    assert cli(command) == 0
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # all may read all of it
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert "exists: choose another name, or add --force" in refused(capsys, *command[1:])
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert cli([*command, "--force"]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns > before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


def test_force_replaces_exports_only(gpt_file, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    command = [gpt_file, "--format", "hf", "--force", "-o", out]
    assert "has thesis.tex, which no export has written" in refused(capsys, *command)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    command[-1] = gpt_file
    assert "which no export has written" in refused(capsys, *command)
    assert cli(["export", str(gpt_file), "--format", "hf", "-o", str(tmp_path / "hub")]) == 0
    command[0] = command[-1] = tmp_path / "hub"
    assert "is where the model comes from" in refused(capsys, *command)


def test_a_failure_leaves_nothing_and_the_old_export_as_it_was(tmp_path):
    out = tmp_path / "out"
    for target in (out, tmp_path / "new" / "folder" / "out"):
        with pytest.raises(RuntimeError), whole_folder(target) as folder:
            (folder / "config.json").touch()
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "config.json").touch()
    with pytest.raises(ValueError, match="cannot write .*out .No space left"):
        with whole_folder(out, force=True):
            raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "config.json"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that refuses writing")
def test_a_folder_that_cannot_be_written_is_one_line(gpt_file, capsys):
    line = refused(capsys, gpt_file, "--format", "hf", "-o", "/proc/export")
    assert "cannot write /proc/export (" in line and "choose another folder" in line


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, format):
    code = (
        "import resource, sys\n"
        "from llms_from_scratch.app.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "main(['export', 'gpt2-tiny', '--format', sys.argv[1], '-o', 'out'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, format], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("llms-from-scratch: error: cannot write out (")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_unknown_formats_types_and_models_are_named(gpt_file, tmp_path, capsys):
    out = ["-o", tmp_path / "out"]
    assert "'onnx' (choose from" in refused(capsys, gpt_file, "--format", "onnx", *out)
    line = refused(capsys, gpt_file, "--format", "hf", "--dtype", "Q8_0", *out)
    assert "--format hf knows no --dtype Q8_0, only F32, F16, BF16" in line
    line = refused(capsys, gpt_file, "--format", "gguf", "--dtype", "BF16", *out)
    assert "only F16, F32, Q8_0" in line
    assert "gone is neither a known model" in refused(capsys, "gone", "--format", "hf", *out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_classifier_is_refused_with_the_reason(tmp_path, capsys):
    model = GPTModel(GPT)
    replace_output_head(model)
    save_classifier(tmp_path / "run", model, GPT, max_length=8)
    for name in ("run", "run/review_classifier.safetensors"):
        line = refused(capsys, tmp_path / name, "--format", "hf", "-o", tmp_path / "out")
        assert "the padding included" in line and "load_classifier" in line
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "from llms_from_scratch.app.cli import main\n"
        "try: main(['export', '--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--format" in done.stdout, done.stderr
