"""Tokenizers and forms of conversation: ids of the libraries, and no way in for marks."""

import base64
import random

import pytest
import transformers
from small_tokenizers import TEXT, byte_level, sentence_pieces
from tokenizers import Tokenizer

from llms_from_scratch.generate import TextStream
from llms_from_scratch.llama2 import LlamaTokenizer
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.chat_formats import (
    ChatFormat,
    ChatMLFormat,
    GemmaFormat,
    GemmaTokenizer,
    HubTokenizer,
    Llama3Tokenizer,
    OlmoFormat,
    OlmoTokenizer,
    Qwen3Tokenizer,
    QwenFormat,
    clean_text,
    find_chat_format,
)

ODD = ["", " ", "a", "naïve 😀", "  x\n\n", "don't 123", "<|im_end|>", "<start_of_turn>user", "\t"]


@pytest.fixture(scope="module")
def qwen_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    marks = [m for m in Qwen3Tokenizer._SPECIALS if "think" not in m]
    byte_level(path, marks, ["<think>", "</think>"])
    return path


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    sentence_pieces(path, ["<start_of_turn>", "<end_of_turn>"])
    return path


@pytest.fixture(scope="module")
def llama3_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.model"
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the", b"in", b"ing"]
    lines = (f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(tokens))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_hub_tokenizer_gives_the_librarys_ids_and_never_marks_for_a_users_text(qwen_file):
    ours = HubTokenizer(qwen_file, "<|endoftext|>")
    library = Tokenizer.from_file(str(qwen_file))
    rng = random.Random(0)
    texts = [*ODD, *("".join(rng.choices(TEXT, k=rng.randint(0, 40))) for _ in range(300))]
    for text in texts:
        ids = ours.encode_ordinary(text)
        assert not set(ids) & set(ours.special_tokens.values()), text
        assert ours.decode(ids) == text
        if "<" not in text:
            assert ids == library.encode(text, add_special_tokens=False).ids
        stream = TextStream(ours)
        assert "".join(map(stream.add, ids)) + stream.rest() == text
    marked = "a<|im_start|>b<think>c"
    assert ours.encode(marked, "all") == library.encode(marked).ids
    assert ours.encode(marked, {"<|im_start|>"})[1] == ours.special_tokens["<|im_start|>"]
    assert ours.eot_token == ours.special_tokens["<|endoftext|>"]
    assert ours.n_vocab == library.get_vocab_size()


def test_qwens_tokenizer_wraps_a_turn_as_transformers_does(qwen_file):
    library = Tokenizer.from_file(str(qwen_file))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(qwen_file))
    theirs.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    for thinking in (False, True):
        ours = Qwen3Tokenizer(
            qwen_file, "Qwen/Qwen3-0.6B", add_generation_prompt=True, add_thinking=thinking
        )
        wanted = theirs.apply_chat_template(
            [{"role": "user", "content": "Hello, you"}],
            add_generation_prompt=True,
            thinking=thinking,
            tokenize=False,
        )
        assert ours.encode("Hello, you") == library.encode(wanted).ids
        chat = QwenFormat(ours, thinking)
        assert chat.encode_messages([{"role": "user", "content": "Hello, you"}]) == ours.encode(
            "Hello, you"
        )
        assert ours.eos_token_id == library.token_to_id("<|im_end|>")
    base = Qwen3Tokenizer(qwen_file, "Qwen/Qwen3-0.6B-Base", apply_chat_template=False)
    assert base.eos_token_id == base.pad_token_id == library.token_to_id("<|endoftext|>")
    assert base.encode("<|im_end|>") == [library.token_to_id("<|im_end|>")]
    assert base.encode("a b") == library.encode("a b").ids
    assert base.decode(base.encode("a<think>b")) == "a<think>b"
    assert base.encode("x", allowed_special={"<|endoftext|>"}) == base.encode_ordinary("x")


def test_gemmas_tokenizer_has_its_marks_and_its_turns(gemma_file):
    ours, library = GemmaTokenizer(gemma_file), Tokenizer.from_file(str(gemma_file))
    for text in ("some text", "more\n\nand", "ünknown 😀", "  two"):
        assert ours.encode(text)[0] == ours.bos_token_id
        assert ours.encode(text, add_special_tokens=False) == library.encode(text).ids
        assert ours.decode(ours.encode_ordinary(text)) == text
        stream = TextStream(ours)
        assert "".join(map(stream.add, ours.encode_ordinary(text))) + stream.rest() == text
    messages = [
        {"role": "user", "content": "some"},
        {"role": "assistant", "content": "text"},
        {"role": "user", "content": "more"},
    ]
    wanted = (
        "<start_of_turn>user\nsome<end_of_turn>\n<start_of_turn>model\ntext<end_of_turn>\n"
        "<start_of_turn>user\nmore<end_of_turn>\n<start_of_turn>model\n"
    )
    assert ours.apply_chat_template(messages, add_generation_prompt=True) == wanted
    assert GemmaFormat(ours).encode_messages(messages) == ours.encode(wanted)
    assert GemmaFormat(ours).stop_ids == {ours.end_of_turn_token_id, ours.eos_token_id}
    system = [{"role": "system", "content": "Be brief."}, messages[0]]
    decoded = ours.decode(GemmaFormat(ours).encode_messages(system))
    assert decoded.startswith("<bos><start_of_turn>user\nBe brief.\n\nsome<end_of_turn>")
    with pytest.raises(ValueError, match="a system message alone is no conversation"):
        GemmaFormat(ours).encode_messages(system[:1])


def test_llama_3s_tokenizer_and_its_turns(llama3_file):
    ours = Llama3Tokenizer(llama3_file)
    assert ours.encode("the thing") == [257, 32, 256, 259]
    assert ours.encode("the", bos=True, eos=True) == [128000, 257, 128001]
    assert ours.encode("<|eot_id|>")[0] == ord("<")  # a user's text
    assert ours.encode("<|eot_id|>", allowed_special={"<|eot_id|>"}) == [128009]
    assert max(ours.special.values()) == 128_255 and len(set(ours.special.values())) == 256
    assert ours.decode(ours.encode("naïve 😀")) == "naïve 😀"
    chat = ChatFormat(ours)
    text = ours.decode(chat.encode("Hello World!"))
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hello World!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = chat.encode("a<|eot_id|>b", system_message="Be brief.")
    assert ids.count(128009) == 2 and chat.decode(ids).count("<|eot_id|>") == 3
    assert chat.stop_ids == {128009, 128001}
    assert clean_text(text + " Llamas eat. ") == "Llamas eat." and clean_text("x") == "x"


def test_olmos_turns_have_a_line_break_before_their_end(qwen_file):
    ours = OlmoTokenizer(qwen_file, 1, 2)
    assert ours.eos_token_id == ours.special_tokens["<|endoftext|>"] and ours.pad_token_id == 2
    ids = OlmoFormat(ours).encode_messages([{"role": "user", "content": "Hi"}])
    assert ours.decode(ids) == "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n"


def test_llama_2s_tokenizer_is_sentencepieces(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("every effort moves you\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=30,
        model_type="bpe",
        minloglevel=2,
    )
    ours = LlamaTokenizer(tmp_path / "tokenizer.model")
    assert ours.decode(ours.encode("every effort")) == "every effort"
    with pytest.raises(FileNotFoundError, match="there is no tokenizer file"):
        LlamaTokenizer(tmp_path / "none.model")


def test_the_form_of_a_conversation_is_found_by_its_marks(qwen_file, gemma_file, llama3_file):
    qwen, gemma = HubTokenizer(qwen_file), HubTokenizer(gemma_file)
    chatml = "{% ... %}<|im_start|>"
    assert type(find_chat_format(qwen, "qwen3", chatml)) is QwenFormat
    assert type(find_chat_format(qwen, "llama", chatml)) is ChatMLFormat
    assert type(find_chat_format(qwen, "olmo3", chatml)) is OlmoFormat
    assert type(find_chat_format(gemma, "gemma3_text", "<start_of_turn>")) is GemmaFormat
    llama3 = Llama3Tokenizer(llama3_file)
    assert type(find_chat_format(llama3, "llama", "<|start_header_id|>")) is ChatFormat
    assert find_chat_format(qwen, "qwen3", "") is None
    with pytest.raises(ValueError, match="no marks that are known here"):
        find_chat_format(get_tokenizer("gpt2"), "llama", "[INST]")


def test_wrong_files_roles_and_tokenizers_are_refused(tmp_path, qwen_file):
    broken = tmp_path / "tokenizer.json"
    for content in ("{", '{"model": 3}', "[1]"):
        broken.write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json is no tokenizer.json"):
            HubTokenizer(broken)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer file"):
        HubTokenizer(tmp_path / "absent.json")
    (tmp_path / "ranks").write_text("no base64 at all\n")
    with pytest.raises(ValueError, match="is no file of byte pairs with ranks"):
        Llama3Tokenizer(tmp_path / "ranks")
    with pytest.raises(ValueError, match="the tokenizer has no special token '<.*>'"):
        GemmaFormat(HubTokenizer(qwen_file))
    with pytest.raises(ValueError, match="unknown role 'robot'; known: system, user"):
        ChatMLFormat(HubTokenizer(qwen_file)).encode_messages([{"role": "robot", "content": ""}])
