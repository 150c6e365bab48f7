"""How each family of models is spoken to: its tokenizer, and the marks around a conversation.

All tokenizers here have the methods of tiktoken's that the chapters use: ``encode_ordinary``,
``encode`` with ``allowed_special``, ``decode``, ``decode_single_token_bytes``, ``n_vocab`` and
``eot_token``. In ``encode_ordinary`` nothing of a text is a special token, so that what a user
writes cannot end his turn and begin another.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import tiktoken

from llms_from_scratch.tokenizer import byte_symbols

Message = dict[str, str]  # {"role": "user", "content": "..."}


class HubTokenizer:
    """A ``tokenizer.json`` of the hub, on the ``tokenizers`` library (extra ``hf``).

    Raises ``FileNotFoundError`` or ``ValueError`` for a file that is none.
    """

    ALSO_SPECIAL = ("<think>", "</think>")  # ordinary for the library, but marks nevertheless

    def __init__(self, tokenizer_file_path: str | Path, eot: str | None = None):
        self.path = Path(tokenizer_file_path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no tokenizer file {self.path}")
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is no tokenizer.json: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.path} is no tokenizer.json: it holds no object")
        self._set_up(content, eot)

    @classmethod
    def from_content(cls, content: dict, eot: str | None = None) -> "HubTokenizer":
        """The tokenizer of a ``tokenizer.json`` that is in memory."""
        tokenizer = cls.__new__(cls)
        tokenizer.path = "tokenizer.json in memory"
        tokenizer._set_up(content, eot)
        return tokenizer

    def _set_up(self, content: dict, eot: str | None) -> None:
        added = content.get("added_tokens") or []
        special = [t for t in added if t["special"] or t["content"] in self.ALSO_SPECIAL]
        self._tok = self._library(content)
        marked = [{**t, "special": t in special} for t in added]
        self._plain = self._library({**content, "added_tokens": marked, "post_processor": None})
        self._plain.encode_special_tokens = True  # as the text that they are
        self.special_tokens = {t["content"]: t["id"] for t in special}
        self.n_vocab = self._tok.get_vocab_size(with_added_tokens=True)
        self.eot_token = self.special_tokens.get(eot) if eot else None
        self._is_byte_level = "ByteLevel" in json.dumps(content.get("decoder"))
        self._bytes = {symbol: byte for byte, symbol in byte_symbols().items()}

    def _library(self, content: dict):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ImportError(
                f"{self.path} needs the library tokenizers: pip install tokenizers, "
                'or pip install "llms-from-scratch[hf]"'
            ) from None
        try:
            return Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{self.path} is no tokenizer.json: {error}") from None

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode(self, text: str, allowed_special: Collection[str] | str = ()) -> list[int]:
        """The ids of a text in which the special tokens in ``allowed_special`` stand for theirs."""
        special = self.special_tokens
        allowed = list(special) if allowed_special == "all" else list(allowed_special)
        marks = sorted((m for m in allowed if m in special), key=len, reverse=True)
        if not marks:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
            ids += [special[part]] if part in marks else self.encode_ordinary(part) if part else []
        return ids

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids, special tokens included."""
        ids = [ids] if isinstance(ids, int) else [int(token_id) for token_id in ids]
        return self._tok.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_single_token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token, which may end inside a character."""
        token = self._tok.id_to_token(token_id)
        if token is None:
            raise KeyError(token_id)
        if token in self.special_tokens:
            return token.encode("utf-8")
        if self._is_byte_level:
            return bytes(self._bytes[symbol] for symbol in token)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)  # SentencePiece: a byte by itself
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode("utf-8")

    def decode_tokens_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.decode_single_token_bytes(token_id) for token_id in ids]


class Qwen3Tokenizer(HubTokenizer):
    """Qwen3's ``tokenizer.json``; ``encode`` wraps a text as a user's turn, unless told not to.

    ``repo_id`` tells an instruction model, whose turns end with ``<|im_end|>``, from a base model;
    with it, a missing file is downloaded from the hub.
    """

    _SPECIALS = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *(
            f"<|{kind}_{end}|>"
            for kind in ("object_ref", "box", "quad")
            for end in ("start", "end")
        ),
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<think>",
        "</think>",
    ]
    _SPLIT_RE = re.compile(r"(<\|[^>]+?\|>|<think>|</think>)")

    def __init__(
        self,
        tokenizer_file_path: str | Path = "tokenizer.json",
        repo_id: str | None = None,
        apply_chat_template: bool = True,
        add_generation_prompt: bool = False,
        add_thinking: bool = False,
    ):
        self.apply_chat_template = apply_chat_template
        self.add_generation_prompt = add_generation_prompt
        self.add_thinking = add_thinking
        path = Path(tokenizer_file_path)
        if not path.is_file() and repo_id:
            from llms_from_scratch.weights.hub import download_from_huggingface

            path = Path(download_from_huggingface(repo_id, path.name, path.parent))
        super().__init__(path)
        self._special_to_id = {
            mark: self._tok.token_to_id(mark)
            for mark in self._SPECIALS
            if self._tok.token_to_id(mark) is not None
        }
        self.pad_token_id = self._special_to_id.get("<|endoftext|>")
        is_chat = repo_id is not None and "Base" not in repo_id
        self.eos_token_id = self._special_to_id.get("<|im_end|>" if is_chat else "<|endoftext|>")
        self.eot_token = self.eos_token_id

    def encode(
        self,
        text: str,
        chat_wrapped: bool | None = None,
        allowed_special: Collection[str] | str | None = None,
    ) -> list[int]:
        """The ids of a text, wrapped as a turn if ``apply_chat_template`` or ``chat_wrapped``.

        Marks such as ``<|im_end|>`` in the text stand for their tokens here: use ``QwenFormat`` or
        ``encode_ordinary`` for what a user wrote.
        """
        if text.strip() in self._special_to_id and "\n" not in text:
            return [self._special_to_id[text.strip()]]
        if self.apply_chat_template if chat_wrapped is None else chat_wrapped:
            text = self._wrap_chat(text)
        ids: list[int] = []
        for part in filter(None, self._SPLIT_RE.split(text)):
            special = self._special_to_id.get(part)
            ids += self.encode_ordinary(part) if special is None else [special]
        return ids

    def _wrap_chat(self, user_msg: str) -> str:
        wrapped = f"<|im_start|>user\n{user_msg}<|im_end|>\n"
        if self.add_generation_prompt:
            wrapped += "<|im_start|>assistant"
            wrapped += "\n" if self.add_thinking else "\n<think>\n\n</think>\n\n"
        return wrapped


class Qwen3_5Tokenizer(Qwen3Tokenizer):
    """Qwen3.5's ``tokenizer.json``; a model that may think is given the beginning of a thought."""

    def _wrap_chat(self, user_msg: str) -> str:
        wrapped = f"<|im_start|>user\n{user_msg}<|im_end|>\n"
        if self.add_generation_prompt:
            wrapped += "<|im_start|>assistant\n<think>\n"
            wrapped += "" if self.add_thinking else "\n</think>\n\n"
        return wrapped


class GemmaTokenizer(HubTokenizer):
    """Gemma 3's ``tokenizer.json``; ``encode`` begins with ``<bos>`` and knows special tokens."""

    bos_token, eos_token, pad_token = "<bos>", "<eos>", "<pad>"
    start_of_turn_token, end_of_turn_token = "<start_of_turn>", "<end_of_turn>"
    add_bos_token, add_eos_token, clean_up_tokenization_spaces = True, False, False

    def _set_up(self, content: dict, eot: str | None) -> None:
        super()._set_up(content, eot or self.eos_token)
        for name in ("bos", "eos", "pad", "start_of_turn", "end_of_turn"):
            mark = getattr(self, f"{name}_token")
            setattr(self, f"{name}_token_id", self._tok.token_to_id(mark))

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        allowed_special: Collection[str] | str | None = None,
    ) -> list[int]:
        """The ids of a text whose marks stand for their tokens; see ``encode_ordinary``."""
        ids = super().encode(text, "all")
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def apply_chat_template(
        self,
        messages: Iterable[Message],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str | list[int]:
        """A conversation as one text, or with ``tokenize`` as ids."""
        text = "".join(
            f"{self.start_of_turn_token}{'model' if m['role'] == 'assistant' else m['role']}\n"
            f"{m['content']}{self.end_of_turn_token}\n"
            for m in messages
        )
        if add_generation_prompt:
            text += f"{self.start_of_turn_token}model\n"
        return self.encode(text) if tokenize else text


class Gemma4Tokenizer(GemmaTokenizer):
    """Gemma 4's ``tokenizer.json``, with other marks around a turn: ``<|turn>`` and ``<turn|>``."""

    start_of_turn_token, end_of_turn_token = "<|turn>", "<turn|>"
    turn_token = end_of_turn_token  # where the model stops

    def _set_up(self, content: dict, eot: str | None) -> None:
        super()._set_up(content, eot)
        self.turn_token_id = self.end_of_turn_token_id


class OlmoTokenizer(HubTokenizer):
    """Olmo 3's ``tokenizer.json``."""

    def __init__(
        self, tokenizer_file_path: str | Path, eos_token_id: int | None, pad_token_id: int | None
    ):
        super().__init__(tokenizer_file_path)
        self.eos_token_id = self._first_of(("<|endoftext|>", "<end_of_turn>"), eos_token_id)
        self.pad_token_id = self._first_of(("<|pad|>", "<pad>"), pad_token_id)
        self.eot_token = self.eos_token_id

    def _first_of(self, marks: Iterable[str], otherwise: int | None) -> int | None:
        ids = (self._tok.token_to_id(mark) for mark in marks)
        return next((token_id for token_id in ids if token_id is not None), otherwise)


class TinyAyaTokenizer(HubTokenizer):
    """Tiny Aya's ``tokenizer.json``; the ids given are for marks that the file does not have."""

    def __init__(
        self,
        tokenizer_file_path: str | Path,
        eos_token_id: int = 3,
        pad_token_id: int = 0,
        bos_token_id: int = 2,
    ):
        super().__init__(tokenizer_file_path)
        self.eos_token_id = self.special_tokens.get("<EOS_TOKEN>", eos_token_id)
        self.pad_token_id = self.special_tokens.get("<PAD>", pad_token_id)
        self.bos_token_id = self.special_tokens.get("<BOS_TOKEN>", bos_token_id)
        self.eot_token = self.eos_token_id


LLAMA3_PATTERN = (  # as Meta publishes it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Llama3Tokenizer:
    """Llama 3's ``tokenizer.model``, a file of byte pairs with their ranks, on tiktoken."""

    def __init__(self, model_path: str | Path):
        path = Path(model_path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer file {path}")
        from tiktoken.load import load_tiktoken_bpe

        try:
            ranks = load_tiktoken_bpe(str(path))
        except ValueError as error:
            raise ValueError(f"{path} is no file of byte pairs with ranks: {error}") from None
        self.special = {
            "<|begin_of_text|>": 128_000,
            "<|end_of_text|>": 128_001,
            "<|start_header_id|>": 128_006,
            "<|end_header_id|>": 128_007,
            "<|eot_id|>": 128_009,
        }
        taken = set(self.special.values())
        self.special |= {  # up to the end of the vocabulary, 128,256 tokens
            f"<|reserved_{i}|>": 128_002 + i for i in range(254) if 128_002 + i not in taken
        }
        self.model = tiktoken.Encoding(
            path.name, pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )
        self.n_vocab = self.model.n_vocab
        self.eot_token = self.special["<|end_of_text|>"]
        self.special_tokens = self.special

    def encode(self, text: str, bos: bool = False, eos: bool = False, **kwargs) -> list[int]:
        """The ids of a text; special tokens in it only if ``allowed_special`` names them."""
        allowed = kwargs.pop("allowed_special", None) or set()
        kwargs.setdefault("disallowed_special", ())
        ids = self.model.encode(text, allowed_special=allowed, **kwargs)
        begin = [self.special["<|begin_of_text|>"]] if bos else []
        return begin + ids + ([self.special["<|end_of_text|>"]] if eos else [])

    def encode_ordinary(self, text: str) -> list[int]:
        return self.model.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.model.decode(list(ids))

    def decode_single_token_bytes(self, token_id: int) -> bytes:
        return self.model.decode_single_token_bytes(token_id)


def clean_text(text: str, header_end: str = "assistant<|end_header_id|>\n\n") -> str:
    """What follows the first ``header_end``, stripped; the text as it is if there is none."""
    _, found, answer = text.partition(header_end)
    return answer.strip() if found else text


# --- Conversations ---


class TurnFormat:
    """A conversation as ids: marks are special tokens, what people wrote is ordinary text.

    ``stop_ids`` end a turn of the model. Raises ``ValueError`` if the tokenizer lacks a mark.
    """

    begin: tuple[str, ...] = ()  # special tokens before the first turn
    stops: tuple[str, ...] = ()
    roles: dict[str, str] = {}  # other names for them
    default_system: str | None = None

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.stop_ids = {self.mark(stop) for stop in self.stops}

    def mark(self, special: str) -> int:
        """The id of a special token."""
        ids = special_tokens_of(self.tokenizer)
        if special not in ids:
            raise ValueError(f"the tokenizer has no special token {special!r}")
        return ids[special]

    def text(self, text: str) -> list[int]:
        return self.tokenizer.encode_ordinary(text)

    def encode_messages(self, messages: Iterable[Message]) -> list[int]:
        """All turns so far, and the beginning of the model's next one."""
        messages = list(messages)
        if self.default_system and not any(m["role"] == "system" for m in messages):
            messages.insert(0, {"role": "system", "content": self.default_system})
        ids = [self.mark(special) for special in self.begin]
        for message in messages:
            if message["role"] not in ("system", "user", "assistant"):
                raise ValueError(
                    f"unknown role {message['role']!r}; known: system, user, assistant"
                )
            role = self.roles.get(message["role"], message["role"])
            ids += self.turn(role, message["content"])
        return ids + self.answer()

    def encode_instruction(self, instruction: str, input_text: str = "") -> list[int]:
        """An instruction of chapter 7 with its input, as a user's only turn."""
        content = f"{instruction}\n{input_text}" if input_text else instruction
        return self.encode_messages([{"role": "user", "content": content}])

    def turn(self, role: str, content: str) -> list[int]:
        raise NotImplementedError

    def answer(self) -> list[int]:
        """What a turn of the model begins with."""
        raise NotImplementedError


class ChatMLFormat(TurnFormat):
    """``<|im_start|>role``, a line break, the text, ``<|im_end|>``: SmolLM2 and many others."""

    stops = ("<|im_end|>",)

    def turn(self, role: str, content: str) -> list[int]:
        start, end = self.mark("<|im_start|>"), self.mark("<|im_end|>")
        return [start, *self.text(f"{role}\n{content}"), end, *self.text("\n")]

    def answer(self) -> list[int]:
        return [self.mark("<|im_start|>"), *self.text("assistant\n")]


class SmolLM2Format(ChatMLFormat):
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class QwenFormat(ChatMLFormat):
    """ChatML; without ``thinking``, the model is given an empty thought to begin with."""

    stops = ("<|im_end|>", "<|endoftext|>")

    def __init__(self, tokenizer, thinking: bool = False):
        super().__init__(tokenizer)
        self.thinking = thinking

    def answer(self) -> list[int]:
        begin = super().answer()
        if self.thinking:
            return begin
        think, end = self.mark("<think>"), self.mark("</think>")
        return [*begin, think, *self.text("\n\n"), end, *self.text("\n\n")]


class Qwen3_5Format(QwenFormat):
    """As Qwen3's; with ``thinking``, the thought is begun."""

    def answer(self) -> list[int]:
        begin = super().answer()
        return [*begin, self.mark("<think>"), *self.text("\n")] if self.thinking else begin


class OlmoFormat(ChatMLFormat):
    """ChatML with a line break before the end of a turn."""

    stops = ("<|im_end|>", "<|endoftext|>")

    def turn(self, role: str, content: str) -> list[int]:
        return super().turn(role, f"{content}\n")


class GemmaFormat(TurnFormat):
    """Gemma's turns; it knows no system message, which goes before the first of the user's."""

    begin = ("<bos>",)
    stops = ("<end_of_turn>", "<eos>")
    roles = {"assistant": "model"}

    def encode_messages(self, messages: Iterable[Message]) -> list[int]:
        messages = list(messages)
        if messages and messages[0]["role"] == "system":
            system, *messages = messages
            if not messages:
                raise ValueError("a system message alone is no conversation: add a user's")
            first = messages[0]
            content = f"{system['content']}\n\n{first['content']}"
            messages = [{"role": first["role"], "content": content}, *messages[1:]]
        return super().encode_messages(messages)

    def turn(self, role: str, content: str) -> list[int]:
        start, end = self.mark("<start_of_turn>"), self.mark("<end_of_turn>")
        return [start, *self.text(f"{role}\n{content.strip()}"), end, *self.text("\n")]

    def answer(self) -> list[int]:
        return [self.mark("<start_of_turn>"), *self.text("model\n")]


class Gemma4Format(TurnFormat):
    """Gemma 4's turns, with marks of their own; a system message has a turn too."""

    begin = ("<bos>",)
    stops = ("<turn|>", "<eos>")
    roles = {"assistant": "model"}

    def turn(self, role: str, content: str) -> list[int]:
        start, end = self.mark("<|turn>"), self.mark("<turn|>")
        return [start, *self.text(f"{role}\n{content.strip()}"), end, *self.text("\n")]

    def answer(self) -> list[int]:
        return [self.mark("<|turn>"), *self.text("model\n")]


class TinyAyaFormat(TurnFormat):
    """Tiny Aya's turns: a mark for who speaks, and marks around a response."""

    begin = ("<BOS_TOKEN>",)
    stops = ("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>")
    roles = {
        "assistant": "<|CHATBOT_TOKEN|>",
        "user": "<|USER_TOKEN|>",
        "system": "<|SYSTEM_TOKEN|>",
    }

    def turn(self, role: str, content: str) -> list[int]:
        ids = [self.mark("<|START_OF_TURN_TOKEN|>"), self.mark(role), *self.text(content)]
        if role == self.roles["assistant"]:
            ids = [*self.answer(), *self.text(content), self.mark("<|END_RESPONSE|>")]
        return [*ids, self.mark("<|END_OF_TURN_TOKEN|>")]

    def answer(self) -> list[int]:
        marks = ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>")
        return [self.mark(mark) for mark in marks]


class ChatFormat(TurnFormat):
    """Llama 3's turns: a header with the role, a blank line, the text, ``<|eot_id|>``."""

    begin = ("<|begin_of_text|>",)
    stops = ("<|eot_id|>", "<|end_of_text|>")

    def __init__(self, tokenizer, *, default_system: str = "You are a helpful assistant."):
        super().__init__(tokenizer)
        self.default_system = default_system

    def encode(
        self,
        user_message: str,
        system_message: str | None = None,
        allowed_special: Collection[str] | None = None,
    ) -> list[int]:
        """One question with its system message, up to where the answer begins."""
        system = system_message if system_message is not None else self.default_system
        messages = [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user_message})
        return self.encode_messages(messages)

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def turn(self, role: str, content: str) -> list[int]:
        return [*self._header(role), *self.text(content.strip()), self.mark("<|eot_id|>")]

    def answer(self) -> list[int]:
        return self._header("assistant")

    def _header(self, role: str) -> list[int]:
        start, end = self.mark("<|start_header_id|>"), self.mark("<|end_header_id|>")
        return [start, *self.text(role), end, *self.text("\n\n")]


def special_tokens_of(tokenizer) -> dict[str, int]:
    """The special tokens of one of ours, or of tiktoken's."""
    if hasattr(tokenizer, "special_tokens"):
        return tokenizer.special_tokens
    return {token: tokenizer.encode_single_token(token) for token in tokenizer.special_tokens_set}


ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<EOS_TOKEN>")


def end_of_text_id(tokenizer) -> int:
    """The id that ends a text; ``ValueError`` for a tokenizer that has none."""
    special = special_tokens_of(tokenizer)
    for mark in ENDS_OF_TEXT:
        if mark in special:
            return special[mark]
    raise ValueError(f"the tokenizer has none of {', '.join(ENDS_OF_TEXT)} to end a text")


CHATML_FORMATS = {  # by the model's type, where it is not Qwen3's
    "olmo3": OlmoFormat,
    "llama": ChatMLFormat,
    "qwen3_5": Qwen3_5Format,
    "qwen3_5_text": Qwen3_5Format,
}


def find_chat_format(tokenizer, model_type: str, template: str) -> TurnFormat | None:
    """The form of conversation that a model was trained with; None if it came without a template.

    Raises ``ValueError`` for a template of none of the families that are known here.
    """
    if tokenizer is None or not template:
        return None
    special = special_tokens_of(tokenizer)
    for mark, form in (
        ("<|start_header_id|>", ChatFormat),
        ("<start_of_turn>", GemmaFormat),
        ("<|turn>", Gemma4Format),
        ("<|START_OF_TURN_TOKEN|>", TinyAyaFormat),
        ("<|im_start|>", CHATML_FORMATS.get(model_type, QwenFormat)),
    ):
        if mark in special and mark in template:
            is_smollm = form is ChatMLFormat and SmolLM2Format.default_system in template
            return (SmolLM2Format if is_smollm else form)(tokenizer)
    raise ValueError(
        "the model's chat template has no marks that are known here; known: those of Llama 3, "
        "Gemma, Tiny Aya, and ChatML"
    )
