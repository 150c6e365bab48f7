"""Tiny Aya, Qwen3.5 and Gemma 4 as on the hub: loaded, spoken to, served, exported.

The folders are written by ``transformers``, with a tokenizer that is trained here, a chat template,
and whatever published files hold besides the text model.
"""

import json
import shutil

import pytest
import requests
import torch
import transformers
from local_server import served
from safetensors.torch import load_file, save_file
from small_tokenizers import byte_level, sentence_pieces
from tokenizers import Tokenizer

from llms_from_scratch.app import chat as chat_module
from llms_from_scratch.app.chat import Chat
from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.gemma4 import GemmaTokenizer, unused_tensors
from llms_from_scratch.serving.speaking import Speaker
from llms_from_scratch.weights.chat_formats import (
    Gemma4Format,
    Gemma4Tokenizer,
    Qwen3_5Format,
    Qwen3_5Tokenizer,
    Qwen3Tokenizer,
    TinyAyaFormat,
    TinyAyaTokenizer,
)
from llms_from_scratch.weights.pretrained import load_pretrained

SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4}
DELTA = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
SHARING = {
    "head_dim": 8,
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 6,
    "final_logit_softcapping": 30.0,
}
MODELS = {  # name: class and configuration of transformers, what is its own, its type
    "tiny aya": ("Cohere2ForCausalLM", "Cohere2Config", WINDOWS, "cohere2"),
    "qwen3.5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", DELTA, "qwen3_5_text"),
    "gemma4": ("Gemma4ForCausalLM", "Gemma4TextConfig", WINDOWS | SHARING, "gemma4_text"),
}
AYA_MARKS = (
    *("<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
QWEN_MARKS = [mark for mark in Qwen3Tokenizer._SPECIALS if "think" not in mark]
TEMPLATES = {
    "tiny aya": "<BOS_TOKEN>{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m.role == 'user' %}<|USER_TOKEN|>{{ m.content }}"
    "{% else %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}",
    "qwen3.5": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not thinking %}{{ '\\n' }}</think>\n\n{% endif %}{% endif %}",
    "gemma4": "<bos>{% for m in messages %}"
    "<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}",
}
FORMATS = {"tiny aya": TinyAyaFormat, "qwen3.5": Qwen3_5Format, "gemma4": Gemma4Format}
TURNS = [
    {"role": "user", "content": "some text"},
    {"role": "assistant", "content": "more"},
    {"role": "user", "content": "and ünknown 😀 words"},
]
every_model = pytest.mark.parametrize("name", MODELS)


def write_tokenizer(name, path):
    if name == "tiny aya":
        byte_level(path, AYA_MARKS)
    elif name == "qwen3.5":
        byte_level(path, QWEN_MARKS, ["<think>", "</think>"])
    else:
        sentence_pieces(path, ["<|turn>", "<turn|>"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each model, as it is on the hub, and the peer that wrote it."""
    made = {}
    for name, (model_class, config_class, own, _) in MODELS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        write_tokenizer(name, folder / "tokenizer.json")
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        sizes = {"vocab_size": size} | (
            {"vocab_size_per_layer_input": size} if "gemma" in name else {}
        )
        config = getattr(transformers, config_class)(**SMALL, **own, **sizes)
        torch.manual_seed(3)
        peer = getattr(transformers, model_class)(config).eval()
        with torch.no_grad():
            for parameter in peer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        peer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
        made[name] = folder, peer
    return made


def template_of(name, folder, messages, **options):
    """The conversation as transformers writes it, and its ids."""
    peer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    peer.chat_template = TEMPLATES[name]
    options = {"tokenize": False, "add_generation_prompt": True} | options
    text = peer.apply_chat_template(messages, **options)
    return text, Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


# --- Tokenizers ---


def test_tiny_ayas_tokenizer_knows_its_marks_and_begins_once(folders):
    folder, _ = folders["tiny aya"]
    path = folder / "tokenizer.json"
    ours, library = TinyAyaTokenizer(path), Tokenizer.from_file(str(path))
    for mark in ("EOS_TOKEN", "BOS_TOKEN"):
        wanted = library.token_to_id(f"<{mark}>")
        assert getattr(ours, f"{mark.lower()}_id") == wanted
    assert ours.pad_token_id == library.token_to_id("<PAD>")
    assert ours.eot_token == ours.eos_token_id
    text, ids = template_of("tiny aya", folder, TURNS[:1])
    assert ours.encode(text, "all") == ids and ids.count(ours.bos_token_id) == 1
    for text in ("don't move", "naïve 😀", "<EOS_TOKEN>", "  two\n\n"):
        assert ours.encode_ordinary(text) == library_ids_of_text(ours, text)
        assert ours.decode(ours.encode_ordinary(text)) == text


def library_ids_of_text(ours, text):
    """What the library makes of a text in which no mark is one."""
    plain = Tokenizer.from_str(ours._tok.to_str())
    plain.encode_special_tokens = True
    return plain.encode(text, add_special_tokens=False).ids


def test_tiny_ayas_ids_for_marks_that_a_file_lacks_are_the_given_ones(tmp_path):
    byte_level(tmp_path / "tokenizer.json", ["<|END_RESPONSE|>"])
    ours = TinyAyaTokenizer(tmp_path / "tokenizer.json", eos_token_id=7, pad_token_id=8)
    assert (ours.eos_token_id, ours.pad_token_id, ours.bos_token_id) == (7, 8, 2)


@pytest.mark.parametrize("thinking", [False, True])
def test_qwen3_5s_tokenizer_begins_a_thought_as_the_template_does(folders, thinking):
    folder, _ = folders["qwen3.5"]
    path = folder / "tokenizer.json"
    ours = Qwen3_5Tokenizer(
        path, "Qwen/Qwen3.5-0.8B", add_generation_prompt=True, add_thinking=thinking
    )
    text, ids = template_of("qwen3.5", folder, TURNS[:1], thinking=thinking)
    assert text.endswith("<think>\n" if thinking else "<think>\n\n</think>\n\n")
    assert ours.encode("some text") == ids
    assert Qwen3_5Format(ours, thinking).encode_messages(TURNS[:1]) == ids
    library = Tokenizer.from_file(str(path))
    assert ours.eos_token_id == library.token_to_id("<|im_end|>")
    assert ours.pad_token_id == library.token_to_id("<|endoftext|>")
    assert (
        Qwen3_5Tokenizer(path, apply_chat_template=False).encode("a b")
        == library.encode("a b", add_special_tokens=False).ids
    )


def test_gemma_4s_tokenizer_has_its_own_marks_around_a_turn(folders):
    folder, _ = folders["gemma4"]
    path = folder / "tokenizer.json"
    ours, library = GemmaTokenizer(path), Tokenizer.from_file(str(path))
    assert isinstance(ours, Gemma4Tokenizer)
    for name, mark in (("bos", "<bos>"), ("eos", "<eos>"), ("pad", "<pad>"), ("turn", "<turn|>")):
        assert getattr(ours, f"{name}_token") == mark
        assert getattr(ours, f"{name}_token_id") == library.token_to_id(mark)
    text, ids = template_of("gemma4", folder, TURNS)
    assert "<bos>" + ours.apply_chat_template(TURNS, add_generation_prompt=True) == text
    assert ours.apply_chat_template(TURNS, tokenize=True, add_generation_prompt=True) == ids
    for text in ("some text", "ünknown 😀", "  two"):
        assert ours.encode(text) == [ours.bos_token_id, *library.encode(text).ids]
        assert ours.decode(ours.encode_ordinary(text)) == text


# --- Models of the hub ---


@every_model
def test_a_folder_of_the_hub_gives_transformers_logits_and_its_conversations(folders, name):
    folder, peer = folders[name]
    loaded = load_pretrained(folder)
    assert loaded.model_type == MODELS[name][3] and type(loaded.chat) is FORMATS[name]
    text, ids = template_of(name, folder, TURNS)
    assert loaded.chat.encode_messages(TURNS) == ids
    with torch.no_grad():
        wanted = peer(torch.tensor([ids])).logits
        torch.testing.assert_close(loaded.model(torch.tensor([ids])), wanted, rtol=1e-4, atol=1e-4)
    user = [{"role": "user", "content": "".join(loaded.tokenizer.special_tokens)}]
    marks = set(loaded.chat.encode_messages(TURNS[:1])) & set(
        loaded.tokenizer.special_tokens.values()
    )
    found = set(loaded.chat.encode_messages(user)) & set(loaded.tokenizer.special_tokens.values())
    assert found == marks  # what a user writes is no mark


def published(name, folder, target):
    """A folder with a model for images beside the text model, as these are published."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    whole = {"model_type": name.replace(".", "_"), "text_config": config}
    (target / "config.json").write_text(json.dumps(whole | {"vision_config": {"depth": 2}}))
    tensors = {
        tensor_name.replace("model.", "model.language_model.", 1): tensor
        for tensor_name, tensor in load_file(target / "model.safetensors").items()
    }
    tensors["model.visual.norm.weight"] = torch.ones(2)
    if name == "gemma4":  # keys and values that no layer reads
        cfg = load_pretrained(folder).config
        for unread in unused_tensors(cfg):
            tensors[unread.replace("model.", "model.language_model.", 1)] = torch.ones(3)
    else:
        tensors["mtp.norm.weight"] = torch.ones(2)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("name", ["qwen3.5", "gemma4"])
def test_a_model_that_was_published_with_one_for_images_is_the_same(folders, name, tmp_path):
    alone = load_pretrained(folders[name][0])
    within = load_pretrained(published(name, folders[name][0], tmp_path / "published"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(within.model(ids), alone.model(ids))
    assert within.model_type == alone.model_type and type(within.chat) is FORMATS[name]


@every_model
def test_chat_answers_one_question_and_several(folders, name, monkeypatch, capsys):
    folder, _ = folders[name]
    wanted = "".join(Chat(Speaker.of(load_pretrained(folder)), 8).answer("some text"))
    options = ["--max-new-tokens", "8", "--device", "cpu", "--temperature", "0"]
    assert cli(["chat", str(folder), "--prompt", "some text", *options]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    lines = iter(["some text", "and more", "/exit"])
    monkeypatch.setattr(chat_module, "input", lambda prompt: next(lines), raising=False)
    assert cli(["chat", str(folder), *options]) == 0
    assert wanted in capsys.readouterr().out


@every_model
def test_the_server_gives_the_answer_that_chat_gives(folders, name):
    speaker = Speaker.of(load_pretrained(folders[name][0]), name="newest")
    wanted = "".join(Chat(speaker, 8).answer("some text"))
    with served(speaker) as url:
        body = {
            "model": "newest",
            "messages": TURNS[:1],
            "max_tokens": 8,
            "temperature": 0,
        }
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == wanted


@every_model
def test_export_goes_out_and_in_again_or_refuses_by_name(folders, name, tmp_path, capsys):
    folder, _ = folders[name]
    out = tmp_path / "out"
    assert cli(["export", str(folder), "--format", "hf", "-o", str(out)]) == 0
    one, two = load_pretrained(folder), load_pretrained(out)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(one.model(ids), two.model(ids))
    assert two.chat.encode_messages(TURNS) == one.chat.encode_messages(TURNS)
    assert two.stop_ids >= one.stop_ids
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli(["export", str(folder), "--format", "gguf", "-o", str(tmp_path / "gguf")])
    error = capsys.readouterr().err
    assert f"a {MODELS[name][3]} cannot be written as GGUF here" in error
    assert len(error.strip().splitlines()) == 1


@every_model
@pytest.mark.parametrize("damage", ["config", "tensor", "shape"])
def test_a_damaged_folder_is_refused_by_the_name_of_what_is_wrong(folders, name, damage, tmp_path):
    target = tmp_path / "damaged"
    shutil.copytree(folders[name][0], target)
    tensors = load_file(target / "model.safetensors")
    if damage == "config":
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"something_new": 3}))
        wanted = "something_new"
    elif damage == "tensor":
        del tensors["model.layers.1.mlp.up_proj.weight"]
        wanted = "model.layers.1.mlp.up_proj.weight' is missing"
    else:
        tensors["model.norm.weight"] = torch.ones(5)
        wanted = "model.norm.weight' has shape"
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=wanted):
        load_pretrained(target)
