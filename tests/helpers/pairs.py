"""Small models of ``transformers`` with all parameters random, and ours with the same."""

import copy

import torch
import transformers

from llms_from_scratch.weights.architectures import model_from_config
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.sources import from_dict

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
LONG = {"max_position_embeddings": 128}
WINDOW = {"sliding_window": 5}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500.0}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "rms_norm_eps": 0.1,  # what so small a memory gives back may be tiny, and rounding with it
    **LONG,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
SHARING = {  # the last layers of each type take the keys of layers 0 and 1
    **LONG,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
    + ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 3,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": 97,
    "rms_norm_eps": 0.3,  # scores are not scaled: longer queries would enlarge their rounding
}
BETAS = {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3}


def both(rope):
    return {"rope_parameters": {"full_attention": rope, "sliding_attention": PLAIN_ROPE}}


def turning(share):
    full = {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": share}
    return {"rope_parameters": {"sliding_attention": PLAIN_ROPE, "full_attention": full}}


CASES = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama": ("Llama", {}),
    "llama, one group": ("Llama", {"num_key_value_heads": 1}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN_ROPE}),
    "llama, wide heads": ("Llama", {"head_dim": 12}),
    "qwen3": ("Qwen3", {}),
    "qwen3, wide heads, tied": ("Qwen3", {"head_dim": 14, "tie_word_embeddings": True}),
    "qwen3, yarn": ("Qwen3", {"rope_parameters": YARN_ROPE | {"attention_factor": 1.4}}),
    "qwen3, one group": ("Qwen3", {"num_key_value_heads": 1}),
    "qwen3 moe": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3 moe, not normalized": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": False}),
    "qwen3 moe, one expert": (
        "Qwen3Moe",
        EXPERTS | {"num_experts_per_tok": 1, "norm_topk_prob": True},
    ),
    "gemma3": ("Gemma3", WINDOW | MIXED | {"query_pre_attn_scalar": 11}),
    "gemma3, tied, linear": (
        "Gemma3",
        WINDOW | MIXED | both(LINEAR_ROPE) | {"tie_word_embeddings": True},
    ),
    "gemma3, window of one": ("Gemma3", MIXED | {"sliding_window": 1}),
    "olmo3": ("Olmo3", WINDOW | MIXED | both(PLAIN_ROPE)),
    "olmo3, yarn": ("Olmo3", WINDOW | MIXED | both(YARN_ROPE)),
    "olmo3, yarn with betas": (
        "Olmo3",
        WINDOW | MIXED | both(YARN_ROPE | BETAS) | {"num_key_value_heads": 4},
    ),
    "tiny aya": ("Cohere2", LONG | WINDOW | MIXED | {"logit_scale": 0.25}),
    "tiny aya, tied, full first": (
        "Cohere2",
        LONG
        | WINDOW
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"rope_parameters": PLAIN_ROPE, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "tiny aya, window of one": (
        "Cohere2",
        LONG | MIXED | {"sliding_window": 1, "logit_scale": 2.0},
    ),
    "qwen3.5": ("Qwen3_5", DELTA | {"num_hidden_layers": 3}),
    "qwen3.5, a quarter of a head": (
        "Qwen3_5",
        DELTA
        | {"head_dim": 16, "rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.25}}
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 3},
    ),
    "qwen3.5, half a head": (
        "Qwen3_5",
        DELTA
        | {"rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.5}}
        | {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 2, "tie_word_embeddings": True},
    ),
    "qwen3.5, whole heads": (
        "Qwen3_5",
        DELTA
        | {"rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 1.0}}
        | {"layer_types": ["full_attention"] + ["linear_attention"] * 2},
    ),
    "gemma4": ("Gemma4", WINDOW | SHARING),
    "gemma4, wide, capped, tied": (
        "Gemma4",
        WINDOW
        | SHARING
        | {"use_double_wide_mlp": True, "tie_word_embeddings": True}
        # logits up to the bound
        | {"final_logit_softcapping": 2.0, "num_key_value_heads": 1},
    ),
    "gemma4, half of the pairs turn": ("Gemma4", WINDOW | SHARING | turning(0.5)),
    "gemma4, all pairs turn": ("Gemma4", WINDOW | SHARING | turning(1.0)),
    "gemma4, nothing shared": (
        "Gemma4",
        LONG
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
        | {"sliding_window": 3, "hidden_size_per_layer_input": 0, "global_head_dim": 16}
        | {"rms_norm_eps": 0.3},
    ),
    "olmo3, tied": ("Olmo3", WINDOW | MIXED | {"tie_word_embeddings": True}),
}


def pair_of(case, dtype=torch.float32):
    """A model of transformers with all parameters random, norms too, and ours with the same."""
    name, changes = CASES[case]
    changes = copy.deepcopy(changes)
    config_class = {
        "Gemma3": "Gemma3TextConfig",
        "Qwen3_5": "Qwen3_5TextConfig",
        "Gemma4": "Gemma4TextConfig",
    }.get(name, f"{name}Config")
    config = getattr(transformers, config_class)(**(SMALL | changes))
    torch.manual_seed(len(case))
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        kept = theirs.state_dict(keep_vars=True)
        for tensor in {id(t): t for t in kept.values()}.values():  # buffers that are kept, too
            tensor.add_(0.2 * torch.randn_like(tensor))
    theirs = theirs.to(dtype)
    model_type, cfg = config_from_hub_dict(config.to_dict(), case)
    ours = model_from_config(model_type, cfg | {"dtype": dtype}, from_dict(theirs.state_dict(), ""))
    return theirs, ours.eval()


def ids(b, n, seed=0):
    return torch.randint(0, 97, (b, n), generator=torch.Generator().manual_seed(seed))
