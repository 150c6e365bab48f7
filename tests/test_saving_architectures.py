"""Saving models of every architecture: what chapters 6 and 7 write is read back bit for bit."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llms_from_scratch.app.chat import Chat
from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.appendix_e import (
    load_lora,
    lora_state_dict,
    merge_lora,
    replace_linear_with_lora,
    save_lora,
)
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.ch06 import (
    classify_with_probability,
    load_classifier,
    load_classifier_tokenizer,
    replace_output_head,
    save_classifier,
    set_trainable_layers,
)
from llms_from_scratch.ch07 import (
    CHAT,
    InstructionDataset,
    InstructionDatasetWithMasking,
    custom_collate_with_masking_fn,
    encode_entry,
    end_id,
    generate_responses,
    load_finetuned,
    open_finetuned,
    save_finetuned,
)
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.gemma4 import Gemma4DenseModel
from llms_from_scratch.llama2 import Llama2Model
from llms_from_scratch.llama3 import LLAMA31_ROPE_FREQ, Llama3Model
from llms_from_scratch.olmo3 import Olmo3Model
from llms_from_scratch.qwen3 import Qwen3Model
from llms_from_scratch.qwen3_5 import Qwen3_5Model
from llms_from_scratch.saving import head_is_embedding
from llms_from_scratch.serving.speaking import Speaker
from llms_from_scratch.tiny_aya import TinyAyaModel
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.chat_formats import (
    ChatFormat,
    ChatMLFormat,
    Gemma4Format,
    GemmaFormat,
    HubTokenizer,
    OlmoFormat,
    Qwen3_5Format,
    QwenFormat,
    TinyAyaFormat,
)
from llms_from_scratch.weights.export_tokenizers import tokenizer_json
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained
from llms_from_scratch.weights.saved_tokenizers import (
    describe_tokenizer,
    read_tokenizer,
    write_tokenizer,
)

VOCAB = 300
GPT = {
    "vocab_size": VOCAB,
    "context_length": 512,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
SIZES = {
    "vocab_size": VOCAB,
    "context_length": 512,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "hidden_dim": 24,
    "dtype": torch.float32,
}
SHARED = SIZES | {"n_kv_groups": 1, "rope_base": 50_000.0}
QWEN = SHARED | {"head_dim": 12, "qk_norm": True}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = QWEN | WINDOWS | {"rope_local_base": 10_000.0, "query_pre_attn_scalar": 8}
OLMO = SIZES | WINDOWS | {"n_kv_heads": 1, "rope_base": 50_000.0, "head_dim": 12}
SHARING = SIZES | {
    "n_layers": 2,
    "layer_types": ["sliding_attention"] * 2,
    "sliding_window": 4,
    "n_kv_heads": 1,
    "head_dim": 12,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCAB,
    "num_kv_shared_layers": 1,
    "rope_local_base": 10_000.0,
    "rope_global_base": 10_000.0,
    "rope_global_partial_rotary_factor": 0.5,
}
DELTA = QWEN | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
YARN = {"rope_type": "yarn", "rope_factor": 4.0, "rope_orig_max": 16}
MODELS = {  # name: class, configuration, type on the hub
    "gpt": (GPTModel, GPT, "gpt2"),
    "gpt-fast": (GPTModelFast, GPT, "gpt2"),
    "llama-2": (Llama2Model, SIZES, "llama"),
    "llama-3": (Llama3Model, SHARED | {"rope_freq": LLAMA31_ROPE_FREQ}, "llama"),
    "qwen3": (Qwen3Model, QWEN, "qwen3"),
    "qwen3-without-norms": (Qwen3Model, QWEN | {"qk_norm": False}, "qwen3"),
    "qwen3-moe": (Qwen3Model, QWEN | EXPERTS, "qwen3_moe"),
    "gemma-3": (Gemma3Model, GEMMA, "gemma3_text"),
    "olmo-3": (Olmo3Model, OLMO | YARN, "olmo3"),
    "qwen3.5": (Qwen3_5Model, DELTA, "qwen3_5_text"),
    "gemma-4": (Gemma4DenseModel, SHARING, "gemma4_text"),
    "tiny-aya": (TinyAyaModel, OLMO | {"head_dim": 8, "logit_scale": 0.5}, "cohere2"),
}
IDS = torch.arange(20).reshape(2, 10) * 7
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_model = pytest.mark.parametrize("name", MODELS)
no_gpt = pytest.mark.parametrize("name", [name for name in MODELS if "gpt" not in name])


def new_model(name, seed=1, num_classes=None, tied=False, dtype=torch.float32):
    model_class, config, _ = MODELS[name]
    torch.manual_seed(seed)
    model = model_class(config).to(dtype)
    if tied:
        model.out_head.weight = model.tok_emb.weight
    if num_classes:
        replace_output_head(model, num_classes)
    for parameter in model.parameters():  # norms too: ones and zeros hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def with_lora(model, seed=1):
    torch.manual_seed(seed)
    replace_linear_with_lora(model, rank=2, alpha=4)
    for tensor in lora_state_dict(model).values():
        torch.nn.init.normal_(tensor, std=0.3)
    return model.eval()


@torch.no_grad()
def assert_equal(loaded, saved):
    """The same class, the same bits, the same function, the same sharing of weights."""
    assert type(loaded) is type(saved) and not loaded.training
    state, wanted = loaded.state_dict(), saved.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name
    assert head_is_embedding(loaded) == head_is_embedding(saved)
    assert torch.equal(loaded(IDS), saved(IDS))


# --- Weights ---


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_model
def test_a_finetuned_model_is_read_back_equal(tmp_path, name, dtype, tied):
    _, config, model_type = MODELS[name]
    model = new_model(name, tied=tied, dtype=dtype)
    save_finetuned(tmp_path, model, config, "alpaca", data="mine")
    for path in (tmp_path, tmp_path / "model.pth"):
        loaded, about = load_finetuned(path)
        assert_equal(loaded, model)
        assert about["prompt_style"] == "alpaca" and about["data"] == "mine"
        assert {key: about["config"][key] for key in config} == config
    again = load_pretrained(tmp_path)
    assert again.model_type == model_type
    assert_equal(again.model, model)
    assert again.model.cfg == about["config"]


@pytest.mark.parametrize("in_config", [False, True])
@no_gpt
def test_whether_the_head_is_the_embedding_is_said_as_it_is(tmp_path, name, in_config):
    """It may become so, or stop being so, after the model was made."""
    _, config, _ = MODELS[name]
    config = config | {"tie_embeddings": in_config}
    model = new_model(name, tied=not in_config)
    save_finetuned(tmp_path, model, config, "alpaca")
    assert_equal(load_pretrained(tmp_path).model, model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_model
def test_a_classifier_is_read_back_equal_with_its_new_head(tmp_path, name, dtype):
    _, config, _ = MODELS[name]
    if "gpt" not in name:
        config = config | {"tie_embeddings": True}  # of the base; the new head is its own
    model = new_model(name, num_classes=3, dtype=dtype)
    save_classifier(tmp_path, model, config, max_length=8)
    loaded, about = load_classifier(tmp_path)
    assert_equal(loaded, model)
    assert about["num_classes"] == 3 and about["max_length"] == 8
    set_trainable_layers(loaded, "last_block")  # it can be trained further
    loaded(IDS)[:, -1].sum().backward()
    assert loaded.out_head.weight.grad is not None and loaded.tok_emb.weight.grad is None


@every_model
def test_an_adapter_alone_is_read_into_its_base_and_no_other(tmp_path, name):
    model = with_lora(new_model(name))
    save_lora(model, tmp_path / "adapter")
    base = with_lora(new_model(name), seed=2)
    load_lora(base, tmp_path / "adapter")
    assert_equal(base, model)
    for other in MODELS:
        if other != name:
            with pytest.raises(ValueError, match=r"no such layer|missing|wants|another base"):
                load_lora(with_lora(new_model(other)), tmp_path / "adapter")
    with pytest.raises(ValueError, match="another base"):
        load_lora(with_lora(new_model(name, seed=3)), tmp_path / "adapter")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@every_model
def test_merged_lora_layers_are_saved_as_usual_ones(tmp_path, name, tied):
    _, config, _ = MODELS[name]
    if tied and "gpt" not in name:
        config = config | {"tie_embeddings": True}
    for num_classes in (None, 2):
        model = with_lora(new_model(name, num_classes=num_classes, tied=tied))
        with torch.no_grad():
            wanted = model(IDS)
        merge_lora(model)
        if num_classes:
            save_classifier(tmp_path, model, config, 8)
            loaded = load_classifier(tmp_path)[0]
        else:
            save_finetuned(tmp_path, model, config, "alpaca")
            loaded = load_finetuned(tmp_path)[0]
            assert not head_is_embedding(loaded)  # the change is that of the head alone
        with torch.no_grad():
            torch.testing.assert_close(loaded(IDS), wanted, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    sizes=st.fixed_dictionaries(
        {
            "vocab_size": st.integers(8, 40),
            "context_length": st.integers(20, 99),
            "emb_dim": st.sampled_from([8, 16, 24]),
            "n_layers": st.just(2),
            "n_heads": st.sampled_from([1, 2, 4]),
        }
    ),
    dtype=st.sampled_from(DTYPES),
    num_classes=st.none() | st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_sizes_are_read_back_equal(tmp_path_factory, name, sizes, dtype, num_classes, seed):
    folder = tmp_path_factory.mktemp("run")
    model_class, config, _ = MODELS[name]
    config = config | sizes
    torch.manual_seed(seed)
    model = model_class(config).to(dtype).eval()
    if num_classes:
        replace_output_head(model, num_classes)
        save_classifier(folder, model, config, 8)
        loaded, _ = load_classifier(folder)
    else:
        save_finetuned(folder, model, config, "phi3")
        loaded, _ = load_finetuned(folder)
    for key, tensor in loaded.state_dict().items():
        wanted = model.state_dict()[key]
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), key


@every_model
def test_another_configuration_is_refused_before_anything_is_written(tmp_path, name):
    _, config, _ = MODELS[name]
    for wrong, message in (
        (config | {"emb_dim": 32}, "could not be read again: its tensor"),
        (config | {"colour": 1}, "unknown key 'colour'"),
        ({}, "missing in the"),
    ):
        with pytest.raises(ValueError, match=message):
            save_finetuned(tmp_path, new_model(name), wrong, "alpaca")
        with pytest.raises(ValueError, match=message):
            save_classifier(tmp_path, new_model(name, num_classes=2), wrong, 8)
    assert not any(tmp_path.iterdir())


@no_gpt
def test_damaged_settings_are_a_value_error(tmp_path, name):
    save_finetuned(tmp_path, new_model(name), MODELS[name][1], "alpaca")
    path = tmp_path / "settings.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"model_class": "MambaModel"}, "model_class must be one of"),
        ({"config": content["config"] | {"dtype": "int8"}}, "dtype must be one of"),
        ({"config": content["config"] | {"n_layers": 3}}, "missing|layer_types has 2"),
        ({"config": content["config"] | {"emb_dim": 32}}, "has shape"),
        ({"config": content["config"] | {"colour": 1}}, "unknown key 'colour'"),
    ):
        path.write_text(json.dumps(content | change), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gpt", "gpt-fast"])
def test_files_from_before_other_architectures_could_be_saved_still_load(tmp_path, name):
    """Settings as they were then: nothing of tokenizers, sharing, or the class of a GPTModel."""
    settings = {"asset": "mine", "config": GPT, "prompt_style": "phi3"}
    classifier = {"config": GPT, "num_classes": 2, "max_length": 8}
    if name == "gpt-fast":
        settings |= {"model_class": "GPTModelFast", "dtype": "bfloat16"}
        classifier |= {"model_class": "GPTModelFast", "dtype": "bfloat16"}
    dtype = torch.bfloat16 if name == "gpt-fast" else torch.float32
    model = new_model(name, dtype=dtype)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded, about = load_finetuned(tmp_path)
    assert_equal(loaded, model)
    assert about == settings
    model = new_model(name, num_classes=2, dtype=dtype)
    save_file(model.state_dict(), tmp_path / "review_classifier.safetensors")
    path = tmp_path / "review_classifier.json"
    path.write_text(json.dumps(classifier), encoding="utf-8")
    loaded, about = load_classifier(tmp_path)
    assert_equal(loaded, model)
    assert about == classifier and load_classifier_tokenizer(tmp_path).name == "gpt2"


# --- Tokenizers and prompts ---


def special_of(*marks):
    return {mark: VOCAB - 1 - i for i, mark in enumerate(marks)}


def encoding(*marks):
    """A tokenizer of bytes on tiktoken."""
    import tiktoken

    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257}
    special = special_of(*marks)
    ranks |= {bytes([i - 200, 0]): i for i in range(258, VOCAB - len(marks))}
    return tiktoken.Encoding(
        "own", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=special
    )


def on_tokenizers(*marks):
    return HubTokenizer.from_content(tokenizer_json(encoding(*marks)), marks[0])


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
LLAMA = ("<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
AYA = (
    "<EOS_TOKEN>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)
GEMMA_MARKS = ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
CHATS = {  # name of the model: marks, chat format
    "llama-2": (CHATML, ChatMLFormat),
    "llama-3": ((*LLAMA, "<|eot_id|>"), ChatFormat),
    "qwen3": (CHATML, QwenFormat),
    "qwen3-moe": (CHATML, QwenFormat),
    "gemma-3": (GEMMA_MARKS, GemmaFormat),
    "olmo-3": (CHATML, OlmoFormat),
    "tiny-aya": (AYA, TinyAyaFormat),
    "gemma-4": (("<eos>", "<bos>", "<|turn>", "<turn|>"), Gemma4Format),
    "qwen3.5": (CHATML, Qwen3_5Format),
}
every_chat = pytest.mark.parametrize("name", CHATS)
every_library = pytest.mark.parametrize("make", [encoding, on_tokenizers])
ENTRY = {"instruction": "Name the colour of <|im_end|>.", "input": "the sky", "output": "Blue."}


def base_of(name, make=encoding):
    """A pretrained model with a tokenizer and a chat template."""
    _, config, model_type = MODELS[name]
    marks, _ = CHATS[name]
    template, eos = " ".join(marks), frozenset({VOCAB - 1})
    model, tokenizer = new_model(name), make(*marks)
    return Pretrained("base", config, model, model_type, eos, template, lambda: tokenizer)


@every_library
@every_chat
def test_a_finetuned_model_is_chatted_with_as_its_base_was(tmp_path, name, make):
    base = base_of(name, make)
    assert type(base.chat) is CHATS[name][1]
    save_finetuned(tmp_path, base.model, base.config, CHAT, base=base)
    again, about = open_finetuned(tmp_path)
    assert about["prompt_style"] == CHAT
    assert type(again.chat) is type(base.chat) and again.stop_ids == base.stop_ids
    assert type(again.tokenizer) is type(base.tokenizer)
    for text in ("the sky, the <|im_end|>\n é", "", "日本"):
        assert again.tokenizer.encode_ordinary(text) == base.tokenizer.encode_ordinary(text)
        ids = base.tokenizer.encode_ordinary(text)
        assert again.tokenizer.decode(ids) == text
    messages = [{"role": "user", "content": "the?"}]
    assert again.chat.encode_messages(messages) == base.chat.encode_messages(messages)
    one, two = ("".join(Chat(Speaker.of(p), 8).answer("hi")) for p in (base, again))
    assert one == two


@every_library
@every_chat
def test_a_model_that_learned_a_prompt_style_keeps_its_tokenizer_but_not_its_template(
    tmp_path, name, make, capsys
):
    base = base_of(name, make)
    save_finetuned(tmp_path / "run", base.model, base.config, "alpaca", base=base)
    again = load_pretrained(tmp_path / "run")
    assert again.chat is None and end_id(again.tokenizer) in again.stop_ids
    arguments = ["chat", str(tmp_path / "run"), "--prompt", "hi"]
    assert cli([*arguments, "--max-new-tokens", "3", "--device", "cpu"]) == 0
    assert "tokenizer" not in capsys.readouterr().err


@pytest.mark.parametrize("style", ["alpaca", CHAT])
@every_chat
def test_a_saved_model_is_exported_and_loaded_from_there(tmp_path, name, style):
    base = base_of(name)
    save_finetuned(tmp_path / "run", base.model, base.config, style, base=base)
    out = tmp_path / "out"
    assert cli(["export", str(tmp_path / "run"), "--format", "hf", "-o", str(out)]) == 0
    again = load_pretrained(out)
    with torch.no_grad():
        assert torch.equal(again.model(IDS), base.model(IDS))
    assert again.eos_ids >= load_pretrained(tmp_path / "run").stop_ids
    if style == CHAT:
        assert again.template == base.template
    else:
        assert "### Instruction" in again.template
        end = base.tokenizer.decode([end_id(base.tokenizer)])
        assert repr(end) in again.template
        arguments = ["chat", str(out), "--prompt", "hi", "--prompt-style", "alpaca"]
        assert cli([*arguments, "--max-new-tokens", "3", "--device", "cpu"]) == 0


def test_a_file_of_a_tokenizer_from_before_is_read_only_if_the_settings_say_so(tmp_path):
    base = base_of("llama-3")
    save_finetuned(tmp_path, base.model, base.config, CHAT, base=base)
    save_finetuned(tmp_path, new_model("llama-3"), base.config, "alpaca")
    assert load_pretrained(tmp_path).tokenizer is None


def test_a_chat_style_needs_a_base_that_has_one(tmp_path):
    base = base_of("llama-3")
    base.template = ""
    for given_base in (None, base):
        with pytest.raises(ValueError, match="'chat' needs a base with a chat template"):
            save_finetuned(tmp_path / "x", base.model, base.config, CHAT, base=given_base)
    with pytest.raises(ValueError, match="prompt style must be one of"):
        save_finetuned(tmp_path / "x", base.model, base.config, "other", base=base)
    assert not any(tmp_path.iterdir())


def test_gpt2s_tokenizer_needs_no_file(tmp_path):
    bundled = load_pretrained("gpt2-tiny")
    save_finetuned(tmp_path, bundled.model, bundled.config, "alpaca", base=bundled)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "settings.json"]
    assert load_pretrained(tmp_path).tokenizer.name == "gpt2"


@every_library
@every_chat
def test_a_classifier_is_used_with_the_tokenizer_and_padding_of_its_base(tmp_path, name, make):
    base = base_of(name, make)
    replace_output_head(base.model, 2)
    save_classifier(tmp_path, base.model, base.config, 32, base=base)
    model, about = load_classifier(tmp_path)
    tokenizer = load_classifier_tokenizer(tmp_path)
    assert about["pad_token_id"] == base.pad_id
    one, two = (
        classify_with_probability("the prize!", m, t, "cpu", 32, base.pad_id)
        for m, t in ((base.model, base.tokenizer), (model, tokenizer))
    )
    assert one == two


def test_a_classifier_of_gpt2_has_gpt2s_tokenizer(tmp_path):
    save_classifier(tmp_path, new_model("gpt", num_classes=2), GPT, 8)
    assert load_classifier_tokenizer(tmp_path).name == "gpt2"
    assert "pad_token_id" not in load_classifier(tmp_path)[1]


@pytest.mark.parametrize("content", [{}, {"pre_tokenizer": None}, {"pre_tokenizer": {"a": 1}}])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer of byte pairs"):
        read_tokenizer(path, {"library": "tiktoken"})


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_has_the_same_ids_before_and_after(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    for make in (encoding, on_tokenizers):
        tokenizer = make(*CHATML)
        path = folder / f"{make.__name__}.json"
        if not path.exists():
            write_tokenizer(path, tokenizer)
        again = read_tokenizer(path, describe_tokenizer(tokenizer))
        assert again.encode_ordinary(text) == tokenizer.encode_ordinary(text)
        assert again.eot_token == tokenizer.eot_token


# --- Training data for other models ---


@every_library
@every_chat
def test_a_chat_template_makes_the_prompt_and_only_the_response_is_learned(name, make):
    base = base_of(name, make)
    prompt_length, ids = encode_entry(ENTRY, base.tokenizer, base.chat)
    content = f"{ENTRY['instruction']}\n{ENTRY['input']}"
    prompt = base.chat.encode_messages([{"role": "user", "content": content}])
    assert ids[:prompt_length] == prompt
    assert base.tokenizer.decode(ids[prompt_length:]) == ENTRY["output"]

    dataset = InstructionDatasetWithMasking([ENTRY], base.tokenizer, base.chat)
    end = end_id(base.tokenizer, base.chat)
    assert end in base.stop_ids
    inputs, targets = custom_collate_with_masking_fn([dataset[0]], pad_token_id=end)
    learned = targets[targets != -100].tolist()
    assert learned == [*base.tokenizer.encode_ordinary(ENTRY["output"]), end]
    assert inputs.shape == targets.shape


@every_library
@every_chat
def test_a_prompt_style_is_for_every_tokenizer(name, make):
    base = base_of(name, make)
    prompt_length, ids = encode_entry(ENTRY, base.tokenizer, "alpaca")
    assert base.tokenizer.decode(ids).endswith("\n\n### Response:\nBlue.")
    assert base.tokenizer.decode(ids[:prompt_length]).endswith("the sky")
    assert base.tokenizer.decode([end_id(base.tokenizer)]) == CHATS[name][0][0]
    assert InstructionDataset([ENTRY], base.tokenizer, "phi3").num_dropped == 0


@every_chat
def test_responses_are_generated_with_the_chat_template(name):
    base = base_of(name)
    entries = [{**ENTRY, "instruction": word, "input": ""} for word in ("hi", "the")]
    responses = generate_responses(
        entries, base.model, base.tokenizer, "cpu", base.chat, max_new_tokens=5
    )
    for entry, response in zip(entries, responses, strict=True):
        chat = Chat(Speaker.of(base), 5)
        assert response == "".join(chat.answer(entry["instruction"])).strip()


def test_a_tokenizer_without_an_end_is_refused_by_name():
    with pytest.raises(ValueError, match="has none of <|endoftext|>"):
        end_id(encoding("<|other|>"))
    assert end_id(get_tokenizer()) == 50256


def test_a_finetuned_smollm2_is_chatted_with_and_exported(tmp_path, smollm2_path, capsys):
    base = load_pretrained(smollm2_path)
    model = base.model
    model.requires_grad_(False)
    model.final_norm.requires_grad_(True)
    dataset = InstructionDatasetWithMasking([ENTRY], base.tokenizer, base.chat)
    end = end_id(base.tokenizer, base.chat)
    inputs, targets = custom_collate_with_masking_fn([dataset[0]], pad_token_id=end)
    optimizer = torch.optim.SGD(model.final_norm.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(model(inputs)[0], targets[0]).backward()
    optimizer.step()

    run, out = tmp_path / "run", tmp_path / "out"
    save_finetuned(run, model, base.config, CHAT, base=base, pretrained="smollm2-135m-instruct")
    again = load_pretrained(run)
    assert_equal(again.model, model.eval())
    for text in ("Hello, the 123 worlds!\n\n  é日本", "<|im_end|>", " x = 1;\r\n"):
        assert again.tokenizer.encode_ordinary(text) == base.tokenizer.encode_ordinary(text)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    ids = again.chat.encode_messages(messages)
    assert ids == base.chat.encode_messages(messages) and again.stop_ids == base.stop_ids
    arguments = ["--prompt", "What is the capital of France?", "--max-new-tokens", "12"]
    assert cli(["chat", str(run), *arguments, "--device", "cpu"]) == 0
    answer = capsys.readouterr().out
    assert "Paris" in answer
    assert cli(["export", str(run), "--format", "gguf", "--dtype", "F32", "-o", str(out)]) == 0
    exported = load_pretrained(out / "model.gguf")
    assert_equal(exported.model, model)
    assert exported.chat.encode_messages(messages) == ids
