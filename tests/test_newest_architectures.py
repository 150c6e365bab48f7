"""Tiny Aya, Qwen3.5 and Gemma 4 where they could go wrong: epsilons, lengths, masks, sharing."""

import pytest
import torch
from pairs import CASES, ids, pair_of
from torch.overrides import TorchFunctionMode

from llms_from_scratch.gemma4 import (
    GEMMA4_CONFIG_E2B,
    GEMMA4_CONFIG_E4B,
    Gemma4DenseModel,
    Gemma4Model,
    compute_rope_params,
    get_gemma4_dense_config,
    load_weights_into_gemma4,
    unused_tensors,
)
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.qwen3_5 import QWEN3_5_CONFIG, Qwen3_5Model
from llms_from_scratch.tiny_aya import TINY_AYA_CONFIG, TinyAyaModel

NEWEST = [name for name in CASES if name.startswith(("tiny aya", "qwen3.5", "gemma4"))]
AYA = [name for name in NEWEST if name.startswith("tiny aya")]


class InFloat64(TorchFunctionMode):
    """Whatever asks for float32 gets float64, in both libraries: only mistakes are left."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wider(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(wider, args), **{k: wider(v) for k, v in (kwargs or {}).items()})


@pytest.fixture
def usual_epsilons(monkeypatch):
    """The cases with the epsilon that their family has, where rounding shows in float32."""
    for name in NEWEST:
        family, changes = CASES[name]
        changes = {key: value for key, value in changes.items() if key != "rms_norm_eps"}
        monkeypatch.setitem(CASES, name, (family, changes))


@torch.no_grad()
@pytest.mark.parametrize("case", NEWEST)
def test_with_the_usual_epsilon_nothing_but_rounding_differs(case, usual_epsilons):
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            theirs, ours = pair_of(case, torch.float64)
            whole = ids(2, 80)
            wanted = theirs(whole).logits
            assert_equal(ours(whole), wanted)
            cache, cuts = KVCache.for_model(ours), [3, 30] + [1] * 47
            assert_equal(torch.cat([ours(x, cache=cache) for x in whole.split(cuts, 1)], 1), wanted)
    finally:
        torch.set_default_dtype(torch.float32)
    eps = theirs.config.to_dict().get("rms_norm_eps", theirs.config.to_dict().get("layer_norm_eps"))
    assert eps <= 1e-5


def assert_equal(ours, theirs):
    assert ours.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# --- Lengths and masks ---


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", NEWEST)
def test_texts_longer_than_chunk_and_window_go_on_after_prompts_of_any_length(case):
    theirs, ours = pair_of(case)
    whole = ids(2, 80)
    wanted = theirs(whole).logits
    assert_close(ours(whole), wanted)
    for prompt in (1, 2, 3, 5, 70):
        rest = 70 - prompt
        for cuts in ([prompt, *[1] * 10, *([rest] if rest else [])], [prompt, 2, 78 - prompt]):
            cache = KVCache.for_model(ours)
            logits = torch.cat([ours(x, cache=cache) for x in whole.split(cuts, dim=1)], dim=1)
            assert_close(logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("case", AYA)
def test_tiny_ayas_mask_hides_padding_wherever_it_stands_with_and_without_a_cache(case):
    theirs, ours = pair_of(case)
    whole = ids(3, 40)
    is_token = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.7
    is_token[:, :6] = torch.tensor([[1] * 6, [0] * 6, [0] * 5 + [1]])  # padded on the left, too
    mask = is_token.long()
    wanted = theirs(whole, attention_mask=mask).logits[is_token]
    assert_close(ours(whole, mask)[is_token], wanted)
    for cuts in ([7, 1, 1, 12, 1, 18], [1] * 40):
        cache, logits = KVCache.for_model(ours), []
        for piece in whole.split(cuts, dim=1):
            so_far = mask[:, : cache.length + piece.shape[1]]
            logits.append(ours(piece, so_far, cache=cache))
        assert_close(torch.cat(logits, dim=1)[is_token], wanted)
    assert torch.equal(ours(whole, torch.ones_like(mask)), ours(whole))
    for wrong in (mask[:, :39], mask[0], KVCache.for_model(ours)):
        with pytest.raises(ValueError, match="attention_mask must be a tensor of shape .3, 40."):
            ours(whole, wrong)


def test_tiny_aya_learns_with_a_mask():
    _, ours = pair_of("tiny aya")
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    ours(ids(2, 9), mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters())


# --- Gemma 4: shared keys, rotations, names ---


def test_layers_that_share_have_no_keys_and_the_last_of_each_type_gives_its_own():
    for cfg, shared, donors in (
        (GEMMA4_CONFIG_E2B, 20, {13, 14}),
        (GEMMA4_CONFIG_E4B, 18, {22, 23}),
    ):
        with torch.device("meta"):
            attention = [block.att for block in Gemma4Model(cfg).blocks]
        sharing = [att for att in attention if att.is_kv_shared_layer]
        assert len(sharing) == shared and not any(hasattr(att, "k_proj") for att in sharing)
        assert {att.kv_shared_layer_index for att in sharing} == donors
        assert {i for i, att in enumerate(attention) if att.store_full_length_kv} == donors
        for att in sharing:
            assert attention[att.kv_shared_layer_index].layer_type == att.layer_type
    _, ours = pair_of("gemma4")
    with pytest.raises(ValueError, match="reuse_shared_kv=False"):
        ours(ids(1, 3), reuse_shared_kv=False)
    assert torch.equal(ours(ids(1, 3), reuse_shared_kv=True), ours(ids(1, 3)))


@torch.no_grad()
def test_a_cache_holds_nothing_for_layers_that_share():
    _, ours = pair_of("gemma4")
    cache = KVCache.for_model(ours)
    ours(ids(2, 20), cache=cache)
    kept = [state[0].shape[2] if state else 0 for state in cache.get_all()]
    assert kept == [4, 20, 0, 0, 0]


def test_gemma_4s_angles_turn_all_pairs_or_the_fastest_of_them():
    cos, sin = compute_rope_params(16, 100.0, 8)
    part, _ = compute_rope_params(16, 100.0, 8, "proportional", 0.25)
    assert cos.shape == sin.shape == part.shape == (8, 16)
    assert torch.equal(part[:, [0, 1, 8, 9]], cos[:, [0, 1, 8, 9]])
    assert torch.equal(part[:, 2:8], torch.ones(8, 6))
    for rope_type, share in (("default", 0.5), ("spiral", 1.0)):
        with pytest.raises(ValueError, match=f"rope_type must be .* got '{rope_type}'"):
            compute_rope_params(16, 100.0, 8, rope_type, share)


def test_published_configurations_are_found_by_size():
    assert get_gemma4_dense_config("e4b", torch.float32)["n_layers"] == 42
    assert get_gemma4_dense_config()["dtype"] == torch.bfloat16
    with pytest.raises(ValueError, match="unknown size 'E9B'; known: E2B, E4B"):
        get_gemma4_dense_config("E9B")


@torch.no_grad()
@pytest.mark.parametrize(
    "prefix", ["model.language_model.", "language_model.model.", "language_model.", "model.", ""]
)
def test_gemma_4s_tensors_are_found_whatever_stands_before_their_names(prefix):
    theirs, ours = pair_of("gemma4")
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        tensors[prefix + name[6:] if name.startswith("model.") else name] = tensor
    count = len(tensors)
    for name in unused_tensors(ours.cfg):  # in the published files
        tensors[prefix + name[6:]] = torch.ones(1)
    if "language" in prefix:
        tensors |= {"model.vision_tower.weight": torch.ones(1)}
    model = Gemma4DenseModel(ours.cfg)
    assert load_weights_into_gemma4(model, model.cfg, tensors) == count
    assert torch.equal(model(ids(1, 9)), ours(ids(1, 9)))
    del tensors[f"{prefix}norm.weight"]
    with pytest.raises(ValueError, match="'model.norm.weight' is missing"):
        load_weights_into_gemma4(model, model.cfg, tensors)


# --- Names and configurations ---


def test_parameters_have_the_books_names():
    with torch.device("meta"):
        qwen = Qwen3_5Model(QWEN3_5_CONFIG).state_dict()
        aya = TinyAyaModel(TINY_AYA_CONFIG).state_dict()
    assert (len(qwen), len(aya)) == (321, 291)
    linear = "A_log dt_bias conv1d.weight norm.weight out_proj.weight in_proj_qkv.weight"
    linear += " in_proj_z.weight in_proj_b.weight in_proj_a.weight"
    full = "W_query.weight W_key.weight W_value.weight out_proj.weight q_norm.weight k_norm.weight"
    for layer, names in ((0, linear), (3, full)):
        prefix = f"trf_blocks.{layer}.token_mixer."
        found = {name.removeprefix(prefix) for name in qwen if name.startswith(prefix)}
        assert found == set(names.split())
    shapes = {"in_proj_qkv": (6144, 1024), "in_proj_z": (2048, 1024), "in_proj_a": (16, 1024)}
    for name, shape in (shapes | {"conv1d": (6144, 1, 4)}).items():
        assert qwen[f"trf_blocks.0.token_mixer.{name}.weight"].shape == shape


@pytest.mark.parametrize(
    ("model_class", "cfg", "changes", "message"),
    [
        (TinyAyaModel, TINY_AYA_CONFIG, {"n_kv_group": 2}, "unknown key 'n_kv_group'"),
        (TinyAyaModel, TINY_AYA_CONFIG, {"n_kv_heads": 3}, "no multiple of n_kv_heads=3"),
        (TinyAyaModel, TINY_AYA_CONFIG, {"sliding_window": 0}, "sliding_window .* at least 1"),
        (TinyAyaModel, TINY_AYA_CONFIG, {"layer_types": ["full_attention"]}, "has 1 entries"),
        (TinyAyaModel, TINY_AYA_CONFIG, {"attention_bias": True}, "attention_bias=False only"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"n_layers": 34}, "35 entries for n_layers=34"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"num_kv_shared_layers": 35}, "less than n_layers"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"num_kv_shared_layers": -1}, "less than n_layers"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"num_kv_shared_layers": 31}, "'full_attention'"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"attention_k_eq_v": True}, "attention_k_eq_v=False"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"num_global_kv_heads": 2}, "num_global_kv_heads"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"rope_local_type": "yarn"}, "rope_local_type"),
        (Gemma4DenseModel, GEMMA4_CONFIG_E2B, {"global_head_dim": 0}, "global_head_dim"),
        (
            Gemma4DenseModel,
            GEMMA4_CONFIG_E2B,
            {"vocab_size_per_layer_input": 9},
            "vocab_size_per_layer_input=9 is less than vocab_size=262144",
        ),
    ],
)
def test_configurations_that_cannot_be_computed_are_refused_by_name(
    model_class, cfg, changes, message
):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        model_class(cfg | changes)


SMALLEST = {
    "vocab_size": 257,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "hidden_dim": 64,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "dtype": torch.float32,
}
BOOKS = {  # small configurations of the book's tests
    TinyAyaModel: TINY_AYA_CONFIG
    | SMALLEST
    | {"n_kv_heads": 1, "tie_word_embeddings": False, "logit_scale": 1.0},
    Gemma4DenseModel: GEMMA4_CONFIG_E2B
    | SMALLEST
    | {"vocab_size_per_layer_input": 257, "n_kv_heads": 2, "global_head_dim": 12}
    | {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1, "tie_word_embeddings": False},
    Qwen3_5Model: {k: v for k, v in (QWEN3_5_CONFIG | SMALLEST).items() if k != "sliding_window"}
    | {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    | {"linear_conv_kernel_dim": 2, "partial_rotary_factor": 1.0},
}


@torch.no_grad()
@pytest.mark.parametrize("model_class", BOOKS)
def test_the_books_small_configurations_give_logits(model_class):
    optional = ("pad_token_id", "rope_local_type", "tie_word_embeddings", "bos_token_id")
    for left_out in ((), optional):
        cfg = {k: v for k, v in BOOKS[model_class].items() if k not in left_out}
        logits = model_class(cfg)(torch.randint(0, 257, (2, 10)))
        assert logits.shape == (2, 10, 257) and torch.isfinite(logits).all()
