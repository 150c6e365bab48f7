"""Models in GGUF files, written with the ``gguf`` package: transformers' logits, or a refusal."""

import numpy as np
import pytest
import torch
import transformers

from llms_from_scratch.app.exporting import Loaded, export_model
from llms_from_scratch.blocks.rope import inverse_frequencies, scale_llama3
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.llama3 import LLAMA31_ROPE_FREQ
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.gguf import GGUFFile
from llms_from_scratch.weights.gguf_writer import GGUFTensor, write_gguf
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained

gguf = pytest.importorskip("gguf")

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA31_ROPE_FREQ}
LLAMA3_ROPE["original_max_position_embeddings"] = LLAMA3_ROPE.pop("original_context_length")
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 12}),
    "gemma3": ("Gemma3", {"sliding_window": 5, "query_pre_attn_scalar": 8}),
}
ARCHITECTURE = {"Llama": "llama", "Qwen3": "qwen3", "Gemma3": "gemma3"}
NAMES = {
    "embed_tokens": "token_embd",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def peer_of(case):
    name, changes = CASES[case]
    config_class = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    config = getattr(transformers, config_class)(**(SMALL | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return name, config, model


def llama_cpps_rows(weight, heads):
    """What llama.cpp's converter does to queries and keys of the Llama family."""
    d_out, d_in = weight.shape
    return weight.view(heads, 2, d_out // heads // 2, d_in).swapaxes(1, 2).reshape(d_out, d_in)


def write(path, case, **extra):
    """The file that llama.cpp's converter would write; ``extra`` metadata on top."""
    name, config, model = peer_of(case)
    architecture = ARCHITECTURE[name]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    base = 1e6 if name == "Gemma3" else config.rope_parameters["rope_theta"]
    writer.add_rope_freq_base(base)
    if name == "Gemma3":
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    for key, value in extra.items():
        writer.add_string(f"{architecture}.{key}", value)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        writer.add_tensor(*renamed(key, tensor, name, config))
    if case == "llama 3.1":
        plain = inverse_frequencies(config.head_dim, base)
        factors = plain / scale_llama3(plain, **LLAMA31_ROPE_FREQ)
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def renamed(key, tensor, name, config):
    table = NAMES | (GEMMA if name == "Gemma3" else {})
    stem = key.removeprefix("model.").removesuffix(".weight")
    if stem == "norm":
        theirs = "output_norm"
    elif stem == "lm_head":
        theirs = "output"
    elif stem in table:
        theirs = table[stem]
    else:
        _, number, kind = stem.split(".", 2)
        theirs = f"blk.{number}.{table[kind]}"
    if name == "Llama" and "q_proj" in key:
        tensor = llama_cpps_rows(tensor, config.num_attention_heads)
    if name == "Llama" and "k_proj" in key:
        tensor = llama_cpps_rows(tensor, config.num_key_value_heads)
    if name == "Gemma3" and "norm" in key:
        tensor = tensor + 1
    return f"{theirs}.weight", np.ascontiguousarray(tensor.numpy())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_that_was_written(case, tmp_path):
    peer = write(tmp_path / "model.gguf", case)
    ids = torch.arange(40)[None] % 300
    ours = load_pretrained(tmp_path / "model.gguf")
    torch.testing.assert_close(ours.model(ids), peer(ids).logits, rtol=1e-5, atol=1e-5)
    tied = ours.model.out_head.weight is ours.model.tok_emb.weight
    assert tied == peer.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope' is unknown"),
        ({"some.new.thing": "yes"}, "llama.some.new.thing='yes' is not computed here"),
    ],
)
def test_metadata_that_is_not_computed_is_refused_by_name(extra, message, tmp_path):
    write(tmp_path / "model.gguf", "llama", **extra)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(tmp_path / "model.gguf")
    assert str(tmp_path) in str(error.value)


def test_another_architecture_and_other_frequencies_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba' is unknown; known: llama, qwen3"):
        load_pretrained(tmp_path / "other.gguf")


# --- GPT-2 ---


GPT = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
}


def gpt2_file(folder, qkv_bias=True, tied=False, kind="F32"):
    """What ``llms-from-scratch export`` writes of a GPT whose numbers are all random."""
    torch.manual_seed(1)
    config = GPT | {"qkv_bias": qkv_bias}
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if tied:
        model.out_head.weight = model.tok_emb.weight
    eos = frozenset({50256})
    loaded = Pretrained("gpt", config, model, eos_ids=eos, make_tokenizer=get_tokenizer)
    folder.mkdir(exist_ok=True)
    export_model(Loaded(loaded, {}), folder, "gguf", kind)
    return folder / "model.gguf", model


@pytest.mark.parametrize("model_class", [GPTModel, GPTModelFast])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_comes_back_from_its_gguf_file_bit_for_bit(tmp_path, model_class, qkv_bias, tied):
    path, model = gpt2_file(tmp_path, qkv_bias, tied)
    again = load_pretrained(path, model_class)
    assert again.model_type == "gpt2" and again.config == GPT | {"qkv_bias": qkv_bias}
    assert again.eos_ids == {50256} and again.chat is None
    ids = torch.arange(16)[None]
    if model_class is GPTModel:
        state = again.model.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        assert torch.equal(again.model(ids), model(ids))
    torch.testing.assert_close(again.model(ids), model(ids), rtol=1e-5, atol=1e-4)
    for text in ("Hello, I'm the 2nd\n\n  world é日本", "<|endoftext|>", " a  b"):
        assert again.tokenizer.encode_ordinary(text) == get_tokenizer().encode_ordinary(text)
        assert again.tokenizer.decode(get_tokenizer().encode_ordinary(text)) == text


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_gpt2_of_fewer_bits_is_near(tmp_path, kind):
    path, model = gpt2_file(tmp_path, kind=kind)
    again = load_pretrained(path).model
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0.01)


def test_the_bundled_model_goes_out_and_in(tmp_path):
    bundled = load_pretrained("gpt2-tiny")
    export_model(Loaded(bundled, {}), tmp_path, "gguf", "F32")
    again = load_pretrained(tmp_path / "model.gguf")
    state = again.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in bundled.model.state_dict().items())
    assert again.config == bundled.config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("feed_forward_length", 31, "gpt2.feed_forward_length=31 is not computed here"),
        ("attention.layer_norm_epsilon", 1e-3, "layer_norm_epsilon=0.001.* is not computed"),
        ("attention.head_count_kv", 1, "gpt2.attention.head_count_kv=1 is not computed here"),
        ("rope.freq_base", 1e4, "gpt2.rope.freq_base=10000.0 is not computed here"),
        ("embedding_length", 16, "feed_forward_length=32 is not computed"),
    ],
)
def test_a_gpt2_that_is_computed_differently_is_refused(tmp_path, key, value, message):
    path, _ = gpt2_file(tmp_path)
    file = GGUFFile(path)
    tensors = {
        name: GGUFTensor(shape, "F32", lambda name=name: file.read(name).numpy())
        for name, shape in file.shapes.items()
    }
    for changed, names in (
        ({f"gpt2.{key}": value}, tensors),
        ({}, {k: t for k, t in tensors.items() if k != "blk.1.ffn_up.weight"}),
        ({}, tensors | {"blk.1.colour.weight": tensors["blk.1.ffn_up.weight"]}),
    ):
        other = tmp_path / "other.gguf"
        other.unlink(missing_ok=True)
        write_gguf(other, file.metadata | changed, names)
        wanted = (
            message if changed else r"ffn_up|c_fc.weight' is missing|no place for 'blk.1.colour"
        )
        with pytest.raises(ValueError, match=wanted) as error:
            load_pretrained(other)
        assert str(other) in str(error.value)
