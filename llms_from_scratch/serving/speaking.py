"""How a model is spoken to: messages to the token ids that it goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llms_from_scratch.ch06 import (
    classify_with_probability,
    load_classifier,
    load_classifier_tokenizer,
)
from llms_from_scratch.ch07 import CHAT, PromptStyle, find_prompt_style, open_finetuned
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.chat_formats import Message, TurnFormat
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained

ROLES = ("system", "user", "assistant")


@dataclass
class Speaker:
    """A model with its tokenizer and the form of its prompts.

    With ``turns``, it was trained on conversations and is shown all messages. With ``style``, a
    prompt style of chapter 7, it was trained on single instructions and is shown the last message:
    its first line is the instruction, the lines that follow are the input. With neither, it goes on
    with the last message as with any text. A classifier has ``num_classes``; ``classify`` asks it.
    """

    name: str
    model: torch.nn.Module
    tokenizer: object
    turns: TurnFormat | None = None
    style: PromptStyle | None = None
    stop_ids: frozenset[int] = frozenset()
    model_type: str = "gpt2"
    template: str = ""
    num_classes: int = 0
    max_length: int | None = None  # to which a classifier's texts were padded, with
    pad_id: int | None = None  # (None: the end of a text)

    context_length: int = 0  # how many tokens it may be shown; 0: as many as it can read

    def __post_init__(self):
        self.context_length = self.context_length or self.model.cfg["context_length"]

    @classmethod
    def of(cls, loaded: Pretrained, prompt_style: str | None = CHAT, name: str = "") -> "Speaker":
        """A pretrained model; ``CHAT`` is its own chat template, None no form at all.

        Raises ``ValueError`` for a model without a tokenizer.
        """
        tokenizer = loaded.tokenizer
        if tokenizer is None and prompt_style != CHAT and loaded.model_type == "gpt2":
            tokenizer = get_tokenizer("gpt2")  # a GPT of chapter 5 with fewer or more rows
        if tokenizer is None:
            raise ValueError(
                f"{loaded.name} came without a tokenizer: put its tokenizer.json there"
            )
        turns = loaded.chat if prompt_style == CHAT else None
        has_style = prompt_style not in (CHAT, None)
        return cls(
            name or loaded.name,
            loaded.model,
            tokenizer,
            turns,
            find_prompt_style(prompt_style) if has_style else None,
            loaded.stop_ids if turns else loaded.eos_ids or frozenset({tokenizer.eot_token}),
            loaded.model_type,
            loaded.template if turns else "",
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def kind(self) -> str:
        """What one may expect of it, in a few words."""
        if self.num_classes:
            return "classifies each message"
        if self.turns:
            return "is shown the conversation so far"
        if self.style:
            return "was finetuned on single instructions: each message is answered by itself"
        return "was not finetuned on instructions: it goes on with what you write"

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """What the model is shown of a conversation, up to where its answer begins.

        Raises ``ValueError`` if there is no message, or one of an unknown role.
        """
        if not messages:
            raise ValueError("there is no message to answer")
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"unknown role {message['role']!r}; known: {', '.join(ROLES)}")
        if self.turns:
            return self.turns.encode_messages(messages)
        return self.tokenizer.encode_ordinary(self.format(messages[-1]["content"]))

    def format(self, message: str) -> str:
        """A single message as the model knows instructions."""
        if self.style is None:
            return message
        instruction, _, rest = message.partition("\n")
        entry = {"instruction": instruction, "input": rest}
        return self.style.format_input(entry) + self.style.response_header

    def classify(self, text: str) -> tuple[str, float]:
        """A classifier's label of a text, and its probability (section 6.8)."""
        if not self.num_classes:
            raise ValueError(f"{self.name} is no classifier: it writes text")
        return classify_with_probability(
            text, self.model, self.tokenizer, self.device, self.max_length, self.pad_id
        )

    def fit(self, messages: Sequence[Message], room: int) -> tuple[list[int], str]:
        """``encode_messages``, and a sentence on what had to be left out, if anything.

        ``room`` tokens are to be free for the answer, or a quarter of the context if that is less.
        Of a conversation, the oldest messages are left out, though not a system message; of a text
        that the model just goes on with, the beginning. Raises ``ValueError`` for a last message
        that fills the context by itself.
        """
        most = self.context_length - min(room, self.context_length // 4)
        if not self.turns:
            ids = self.encode_messages(messages)
            if not self.style and not self.num_classes and len(ids) > most:
                return ids[-most:], f"the first {len(ids) - most} tokens do not fit: left out"
            self._check_length(ids)
            return ids, ""
        system = [message for message in messages[:1] if message["role"] == "system"]
        rest = messages[len(system) :]
        starts = [i for i, message in enumerate(rest) if message["role"] == "user"] or [0]
        for forgotten in starts:  # an answer is never shown without its question
            ids = self.encode_messages([*system, *rest[forgotten:]])
            if len(ids) <= most:
                break
        self._check_length(ids)
        note = f"the first {forgotten} messages no longer fit and are forgotten"
        return ids, note if forgotten else ""

    def _check_length(self, ids: list[int]) -> None:
        if len(ids) >= self.context_length:
            raise ValueError(
                f"the message has {len(ids)} tokens with its prompt, the model reads at most "
                f"{self.context_length}: make it shorter"
            )


def load_speaker(
    source: str | Path, prompt_style: str | None = None, device: torch.device | str = "cpu"
) -> Speaker:
    """A model by name or path, the reader's own included, ready to be spoken to.

    ``source`` is what ``load_pretrained`` takes, what chapter 7 or ``gpt_train.py`` wrote, or the
    folder of a classifier of chapter 6. ``prompt_style`` overrides the form of its prompts. Raises
    what the loading functions do, and ``ValueError`` for a model without a tokenizer.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    name = (folder.resolve().name if path.exists() else str(source)).lower()
    if path.exists() and (folder / "review_classifier.json").is_file():
        return _classifier(name, folder, device)
    if path.exists() and (folder / "settings.json").is_file():
        loaded, settings = open_finetuned(path)
        saved_style = settings["prompt_style"]
    else:
        loaded, saved_style = load_pretrained(source), CHAT
    loaded.model.to(device)
    return Speaker.of(loaded, prompt_style or saved_style, name)


def _classifier(name: str, folder: Path, device: torch.device | str) -> Speaker:
    model, settings = load_classifier(folder)
    return Speaker(
        name,
        model.to(device),
        load_classifier_tokenizer(folder),
        num_classes=settings["num_classes"],
        max_length=settings["max_length"],
        pad_id=settings.get("pad_token_id"),
    )
