"""Foreign configurations and files: computed as they say, or refused by name."""

import copy
import json
import re
import shutil
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.gemma3 import GEMMA3_CONFIG_270M, Gemma3Model
from llms_from_scratch.gemma4 import (
    GEMMA4_CONFIG_E2B,
    GEMMA4_CONFIG_E4B,
    Gemma4DenseModel,
    unused_tensors,
)
from llms_from_scratch.llama2 import LLAMA2_CONFIG_7B, Llama2Model, load_weights_into_llama
from llms_from_scratch.llama3 import (
    LLAMA3_CONFIG_8B,
    LLAMA31_CONFIG_8B,
    LLAMA32_CONFIG_1B,
    LLAMA32_CONFIG_3B,
    SMOLLM2_CONFIG_135M,
    Llama3Model,
)
from llms_from_scratch.olmo3 import OLMO3_CONFIG_7B, OLMO3_CONFIG_32B, Olmo3Model
from llms_from_scratch.qwen3 import (
    QWEN3_CONFIG_1_7B,
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_8B,
    QWEN3_CONFIG_14B,
    QWEN3_CONFIG_30B_A3B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
    Qwen3Model,
)
from llms_from_scratch.qwen3_5 import QWEN3_5_CONFIG, Qwen3_5Model
from llms_from_scratch.tiny_aya import TINY_AYA_CONFIG, TinyAyaModel
from llms_from_scratch.weights.architectures import model_from_config
from llms_from_scratch.weights.gpt2 import load_gpt2
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.pretrained import load_pretrained
from llms_from_scratch.weights.sources import from_dict

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SHARING = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 4,
    "num_kv_shared_layers": 2,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": 61,
    "rms_norm_eps": 0.3,
}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "rms_norm_eps": 0.01,
}
FAMILIES = {
    "Llama": ("LlamaConfig", SMALL),
    "Qwen3": ("Qwen3Config", SMALL),
    "Qwen3Moe": ("Qwen3MoeConfig", SMALL | EXPERTS),
    "Gemma3": ("Gemma3TextConfig", SMALL | MIXED),
    "Olmo3": ("Olmo3Config", SMALL | MIXED),
    "Cohere2": ("Cohere2Config", SMALL | MIXED),
    "Gemma4": ("Gemma4TextConfig", SMALL | SHARING),
    "Qwen3_5": ("Qwen3_5TextConfig", SMALL | DELTA),
    "GPT2LMHead": (
        "GPT2Config",
        {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
        | {"bos_token_id": None, "eos_token_id": None},
    ),
}
SIZES = set(SMALL) | {"vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "n_ctx"}
NOT_TRIED = {
    "model_type",
    "architectures",
    "layer_types",
    "rope_parameters",
    "transformers_version",
}


def peer_of(family, changes):
    """A model of transformers with random parameters, and its configuration."""
    config_class, small = FAMILIES[family]
    config = getattr(transformers, config_class)(**(copy.deepcopy(small) | changes))
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if family.startswith("GPT2") else f"{family}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        kept = model.state_dict(keep_vars=True)
        for tensor in {id(t): t for t in kept.values()}.values():  # buffers that are kept, too
            tensor.add_(0.3 * torch.randn_like(tensor))
    return model, config.to_dict()


def ours_of(peer, theirs):
    model_type, cfg = config_from_hub_dict(theirs, "config.json")
    source = from_dict(peer.state_dict(), "peer")
    if model_type != "gpt2":
        return model_from_config(model_type, cfg | {"dtype": torch.float32}, source)
    model = GPTModel(cfg | {"drop_rate": 0.0})
    load_gpt2(model, source)
    return model.eval()


def other_values(value):
    """Values that a field could have in its place."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 2]
    if isinstance(value, float):
        return [value * 10 + 0.1, 0.5]
    if value is None:
        return [2, 0.7, True]
    return ["relu", "gelu"] if isinstance(value, str) else []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_each_field_of_a_configuration_is_computed_or_refused(family):
    """Every field in turn gets other values; if transformers' logits change, ours must too."""
    _, defaults = peer_of(family, {})
    ids = torch.arange(24)[None] % 61
    computed, refused = [], []
    for key, value in defaults.items():
        if key in SIZES or key in NOT_TRIED:
            continue
        for other in other_values(value):
            try:
                peer, theirs = peer_of(family, {key: other})
                with torch.no_grad():
                    wanted = peer(ids).logits
            except Exception:
                continue  # transformers refuses it
            theirs[key] = other
            try:
                ours = ours_of(peer, theirs)
            except ValueError as error:
                assert key in str(error) or "out_head" in str(error) or "place for" in str(error)
                refused.append(key)
                continue
            with torch.no_grad():
                torch.testing.assert_close(ours(ids), wanted, rtol=1e-4, atol=1e-4, msg=key)
            computed.append(key)
    assert len(computed) + len(refused) > 8


@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"layer_norm_epsilon": 0.1}),
        ("gpt2", {"n_inner": 7}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"quantization_config": {"bits": 4}}),
        ("llama", {"something_new": 3}),
        ("qwen3", {"use_sliding_window": True}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("olmo3", {"attention_bias": True}),
        ("gemma4_text", {"enable_moe_block": True}),
        ("gemma4_text", {"attention_k_eq_v": True}),
        ("gemma4_text", {"use_bidirectional_attention": "all"}),
        ("qwen3_5_text", {"attn_output_gate": False}),
        ("qwen3_5_text", {"attention_bias": True}),
        ("qwen3_5_text", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("cohere2", {"use_qk_norm": True}),
        ("cohere2", {"use_parallel_block": False}),
        ("cohere2", {"rotary_pct": 0.5}),
        ("cohere2", {"head_dim": 8}),
        ("cohere2", {"layer_switch": 3}),
        ("cohere2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("mamba", {}),
    ],
)
def test_what_is_not_computed_is_refused_by_name(model_type, field):
    names = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "gemma3_text": "Gemma3", "olmo3": "Olmo3"}
    names |= {"cohere2": "Cohere2", "qwen3_5_text": "Qwen3_5", "gemma4_text": "Gemma4"}
    family = names.get(model_type, "GPT2LMHead" if model_type == "gpt2" else "Llama")
    theirs = peer_of(family, {})[1] | {"model_type": model_type} | field
    if "rope_scaling" in field:
        theirs.pop("rope_parameters")
    wanted = next(iter(field.values()), model_type)
    if isinstance(wanted, dict) and "rope_type" in wanted:
        wanted = wanted["rope_type"]
    key = next(iter(field), "model_type")
    with pytest.raises(ValueError, match="config.json") as error:
        ours_of(peer_of(family, {})[0], theirs)
    assert key in str(error.value) or str(wanted) in str(error.value)


# --- Published sizes, without memory ---


@pytest.mark.parametrize(
    ("model_class", "cfg", "total", "unique"),
    [
        (Llama2Model, LLAMA2_CONFIG_7B, 6_738_415_616, None),
        (Llama3Model, LLAMA3_CONFIG_8B, 8_030_261_248, None),
        (Llama3Model, LLAMA31_CONFIG_8B, 8_030_261_248, None),
        (Llama3Model, LLAMA32_CONFIG_1B, 1_498_482_688, 1_235_814_400),
        (Llama3Model, LLAMA32_CONFIG_3B, 3_606_752_256, 3_212_749_824),
        (Llama3Model, SMOLLM2_CONFIG_135M, 162_826_560, 134_515_008),
        (Qwen3Model, QWEN_CONFIG_06_B, 751_632_384, 596_049_920),
        (Qwen3Model, QWEN3_CONFIG_1_7B, 2_031_739_904, 1_720_574_976),
        (Qwen3Model, QWEN3_CONFIG_4B, 4_411_424_256, 4_022_468_096),
        (Qwen3Model, QWEN3_CONFIG_8B, 8_190_735_360, None),
        (Qwen3Model, QWEN3_CONFIG_14B, 14_768_307_200, None),
        (Qwen3Model, QWEN3_CONFIG_32B, 32_762_123_264, None),
        (Qwen3Model, QWEN3_CONFIG_30B_A3B, 30_532_122_624, None),
        (Gemma3Model, GEMMA3_CONFIG_270M, 435_870_336, 268_098_176),
        (Olmo3Model, OLMO3_CONFIG_7B, 7_298_011_136, None),
        (Olmo3Model, OLMO3_CONFIG_32B, 32_233_522_176, None),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, None, 4_628_569_344),
        (Gemma4DenseModel, GEMMA4_CONFIG_E4B, None, 7_463_013_376),
        (Qwen3_5Model, QWEN3_5_CONFIG, 1_006_672_704, 752_393_024),
        (TinyAyaModel, TINY_AYA_CONFIG, 3_886_098_432, 3_349_227_520),
    ],
)
def test_published_sizes_have_their_number_of_parameters(model_class, cfg, total, unique):
    with torch.device("meta"):
        model = model_class(cfg | {"tie_embeddings": False})
        assert total is None or sum(p.numel() for p in model.parameters()) == total
        if unique:
            tied = model_class(cfg | {"tie_embeddings": True})
            assert sum(p.numel() for p in tied.parameters()) == unique


@pytest.mark.parametrize(
    ("cfg", "count", "tensors"),
    [(GEMMA4_CONFIG_E2B, 4_647_449_856, 601), (GEMMA4_CONFIG_E4B, 7_518_068_992, 720)],
)
def test_gemma_4s_files_hold_keys_and_values_that_no_layer_reads(cfg, count, tensors):
    with torch.device("meta"):
        model = Gemma4DenseModel(cfg)
    unread = unused_tensors(cfg)
    assert len(model.state_dict()) + len(unread) == tensors  # the tied output layer counted too
    numbers = sum(p.numel() for p in model.parameters())
    for name in unread:
        part, layer = name.split(".")[-2], int(name.split(".")[2])
        is_full = cfg["layer_types"][layer] == "full_attention"
        width = cfg["global_head_dim" if is_full else "head_dim"]
        numbers += width if part == "k_norm" else cfg["emb_dim"] * width * cfg["n_kv_heads"]
    assert numbers == count


def test_wrong_configurations_are_refused_by_name():
    for cfg, message in (
        ({"n_kv_group": 2}, "unknown key 'n_kv_group' .* did you mean 'n_kv_groups'"),
        ({"n_kv_groups": 3}, "n_heads=32 is no multiple of n_kv_groups=3"),
        ({"n_layers": 0}, "n_layers of Llama 3 must be at least 1, got 0"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "unknown rope_type 'spiral'; known: default"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn' needs factor"),
        ({"rope_scaling": {"rope_type": "linear", "fact": 2}}, "did you mean 'factor'"),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            Llama3Model(LLAMA3_CONFIG_8B | cfg)
    with pytest.raises(ValueError, match="missing in the configuration of Olmo 3: sliding_window"):
        Olmo3Model({k: v for k, v in OLMO3_CONFIG_7B.items() if k != "sliding_window"})
    with pytest.raises(ValueError, match="layer_types has 60 entries for n_layers=64"):
        Olmo3Model(OLMO3_CONFIG_32B | {"layer_types": OLMO3_CONFIG_32B["layer_types"][:60]})
    types = ["linear_attention"] * 23 + ["sliding_attention"]
    for cfg, message in (
        ({"layer_types": types}, "Qwen3.5: unknown layer type 'sliding_attention'; known"),
        ({"layer_types": types[:5]}, "Qwen3.5: layer_types has 5 entries for n_layers=24"),
        ({"partial_rotary_factor": 1.5}, "must be more than 0 and at most 1, got 1.5"),
        ({"linear_num_value_heads": 24}, "must be a multiple of num_key_heads"),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            Qwen3_5Model(QWEN3_5_CONFIG | cfg)
    theirs = peer_of("Qwen3_5", {})[1]
    theirs["rope_parameters"] |= {"partial_rotary_factor": 0.8}
    with pytest.raises(ValueError, match="partial_rotary_factor=0.8 of head_dim=4 is no even"):
        config_from_hub_dict(theirs, "config.json")
    with pytest.raises(ValueError, match="head_dim must be even, got 5"):
        RotaryEmbedding(5)


def test_a_model_for_texts_and_images_is_read_as_its_text_model():
    """Qwen3.5 as it is published: a configuration in two parts, tensors with longer names."""
    peer, theirs = peer_of("Qwen3_5", {})
    whole = {"model_type": "qwen3_5", "text_config": theirs, "vision_config": {"depth": 2}}
    renamed = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in peer.state_dict().items()
    }
    others = {"model.visual.patch_embed.weight": torch.ones(2), "mtp.norm.weight": torch.ones(2)}
    model_type, cfg = config_from_hub_dict(whole, "config.json")
    source = from_dict(renamed | others, "peer")
    ours = model_from_config(model_type, cfg | {"dtype": torch.float32}, source)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), peer(ids).logits, rtol=1e-5, atol=1e-5)


def test_metas_files_of_llama_2_have_pairs_where_the_hub_has_halves():
    peer, theirs = peer_of("Llama", {"num_key_value_heads": 4})
    ids = torch.arange(12)[None]
    cfg = LLAMA2_CONFIG_7B | {
        "vocab_size": 61,
        "context_length": 32,
        "emb_dim": 16,
        "n_heads": 4,
        "n_layers": 2,
        "hidden_dim": 24,
        "dtype": torch.float32,
        "rms_norm_eps": theirs["rms_norm_eps"],
    }
    hub = peer.state_dict()
    meta = {"rope.freqs": torch.ones(2)}
    for name, tensor in hub.items():
        for old, new in (
            ("model.embed_tokens", "tok_embeddings"),
            ("lm_head", "output"),
            ("model.norm", "norm"),
            ("model.layers", "layers"),
            ("self_attn.q_proj", "attention.wq"),
            ("self_attn.k_proj", "attention.wk"),
            ("self_attn.v_proj", "attention.wv"),
            ("self_attn.o_proj", "attention.wo"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
        ):
            name = name.replace(old, new)
        if ".wq." in name or ".wk." in name:  # from halves to pairs, head by head
            tensor = tensor.view(4, 2, 2, 16).transpose(1, 2).reshape(16, 16)
        meta[name] = tensor
    for params in (hub, meta):
        model = Llama2Model(cfg)
        load_weights_into_llama(model, cfg, params)
        with torch.no_grad():
            torch.testing.assert_close(model(ids), peer(ids).logits, rtol=1e-5, atol=1e-5)


# --- Damaged folders ---


@pytest.fixture
def folder(tmp_path):
    """A hub folder with two shards and an index, as transformers writes it."""
    peer, _ = peer_of("Llama", {})
    peer.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def first_shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def change_tensor(folder, change):
    path = first_shard(folder)
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def lose_tensor(folder):
    index = index_of(folder)
    index["weight_map"]["model.layers.9.self_attn.q_proj.weight"] = first_shard(folder).name
    write_index(folder, index)


def leave_folder(folder):
    index = index_of(folder)
    index["weight_map"]["lm_head.weight"] = "../outside.safetensors"
    write_index(folder, index)


def truncate(folder):
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:-7])


def lie_about_header(folder):
    path = first_shard(folder)
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def edit_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))

    return damage


DAMAGES = {
    "missing shard": (lambda f: first_shard(f).unlink(), "names model-.* which is missing"),
    "truncated": (truncate, "is not a whole safetensors file"),
    "lying header": (lie_about_header, "is not a whole safetensors file"),
    "wrong shape": (lambda f: change_tensor(f, lambda t: t[:-1].clone()), "has shape .* wanted"),
    "NaN": (lambda f: change_tensor(f, lambda t: t * torch.nan), "numbers that are not finite"),
    "absent tensor": (lose_tensor, r"tensor 'model.layers.9.* is not in model-"),
    "path outside": (leave_folder, "leads out of the folder"),
    "index no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "damaged or no JSON file",
    ),
    "index empty": (lambda f: write_index(f, {}), "has no weight_map"),
    "config no JSON": (lambda f: (f / "config.json").write_text("<html>"), "no JSON file"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "model type": (edit_config(model_type="mamba2"), "model_type 'mamba2' is unknown; known"),
    "no size": (edit_config(hidden_size="gone"), "hidden_size missing"),
    "size no number": (edit_config(vocab_size="61"), "must be a number from 1 on: '61'"),
    "rope type": (
        edit_config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        "unknown rope_type 'spiral'",
    ),
    "more layers": (edit_config(num_hidden_layers=3), "tensor 'model.layers.2.* is missing"),
    "fewer layers": (edit_config(num_hidden_layers=1), "has no place for 'model.layers.1"),
    "dtype": (edit_config(dtype="float7"), "unknown dtype 'float7'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_line_that_names_it(folder, damage, capsys):
    do, message = DAMAGES[damage]
    load_pretrained(folder)
    do(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value).strip()
    with pytest.raises(SystemExit) as ended:
        cli(["chat", str(folder), "--prompt", "Hello"])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("llms-from-scratch: error: ") and re.search(message, shown)


def test_shards_and_a_single_file_give_the_same_model(folder, tmp_path_factory):
    single = tmp_path_factory.mktemp("single")
    shutil.copy(folder / "config.json", single)
    tensors = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    save_file(tensors, single / "model.safetensors")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        a, b = (load_pretrained(path).model(ids) for path in (folder, single))
    assert torch.equal(a, b)


def test_prompts_that_are_too_long_or_empty_are_refused(folder):
    model = load_pretrained(folder).model
    with pytest.raises(ValueError, match="got 33 tokens, but the model's context_length is 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="token id 61 is outside of the model's vocabulary"):
        model(torch.tensor([[61]]))
