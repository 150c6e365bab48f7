"""Write smollm2-golden.npz: logits of SmolLM2 as transformers and the gguf package compute them.

    python tests/data/make_smollm2_golden.py

Nothing of llms_from_scratch takes part but the search for the file. Per text: the ids, and for each
position the 20 largest logits with their ids.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize

from llms_from_scratch.data import fetch

TEXTS = {
    "plain": "The capital of France is Paris, and the capital of Italy is",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "odd": "Grüße 😀 1234567  naïve\t\n\n<|im_end|> don't",
}
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEADS = {"attn_q": 9, "attn_k": 3}


def hub_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, block, kind, _ = name.split(".")
    return f"model.layers.{block}.{NAMES[kind]}.weight"


def weight(tensor) -> torch.Tensor:
    values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    kind = tensor.name.split(".")[-2]
    if kind not in HEADS:
        return values
    d_out, d_in = values.shape
    halves = values.reshape(HEADS[kind], d_out // HEADS[kind] // 2, 2, d_in)
    return halves.swapaxes(1, 2).reshape(d_out, d_in)


def build(path: Path) -> tuple[torch.nn.Module, object]:
    reader = gguf.GGUFReader(path)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = {hub_name(t.name): weight(t) for t in reader.tensors}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model, reader


def tokenizer_of(reader):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokens, merges, kinds = (
        reader.fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("tokens", "merges", "token_type")
    )
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    special = [AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == 3]
    tokenizer.add_special_tokens(special)
    tokenizer.encode_special_tokens = True  # a user's text: nothing in it is special
    return tokenizer


def main() -> None:
    model, reader = build(fetch("smollm2-135m-instruct/model.gguf", allow_sample=False))
    tokenizer = tokenizer_of(reader)
    arrays = {}
    for name, text in TEXTS.items():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            top = model(torch.tensor([ids])).logits[0].topk(20)
        arrays |= {f"{name}-ids": np.array(ids, dtype=np.int32)}
        arrays |= {f"{name}-values": top.values.numpy()}
        arrays |= {f"{name}-tokens": top.indices.numpy().astype(np.int32)}
    np.savez_compressed(Path(__file__).with_name("smollm2-golden.npz"), **arrays)


if __name__ == "__main__":
    main()
