"""``llms-from-scratch chat``: talk in the terminal to a model, of chapter 7 or another one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.ch07 import CHAT, find_prompt_style, open_finetuned
from llms_from_scratch.generate import Sampling, stream_text
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.chat_formats import TurnFormat
from llms_from_scratch.weights.pretrained import load_pretrained


class Chat:
    """A model, and how it is asked.

    With a ``TurnFormat``, a conversation: earlier messages are shown to the model, and the oldest
    are left out when they no longer fit into its context; ``forgotten`` counts them. With the name
    of a ``prompt_style`` of chapter 7, each message is an instruction of its own, since those
    models were trained on single ones. Without either, the model just goes on with the text.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer,
        prompt_style: str | TurnFormat | None,
        device: torch.device | str = "cpu",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop_ids: frozenset[int] = frozenset(),
        seed: int | None = None,
    ):
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.turns = prompt_style if isinstance(prompt_style, TurnFormat) else None
        self.style = find_prompt_style(prompt_style) if isinstance(prompt_style, str) else None
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.sampling = Sampling(temperature, top_k)
        self.stop_ids = stop_ids or {tokenizer.eot_token}
        self.context_length = model.cfg["context_length"]
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0  # of the messages, those that the model is no longer shown

    def prompt(self, message: str) -> str:
        """The message as the model knows instructions, up to where the response begins.

        The first line is the instruction; lines that follow it are its input.
        """
        if self.style is None:
            return message
        instruction, _, rest = message.partition("\n")
        entry = {"instruction": instruction, "input": rest}
        return self.style.format_input(entry) + self.style.response_header

    def prompt_ids(self, message: str) -> list[int]:
        """What the model is shown: as much of the conversation as leaves it room to answer."""
        if self.turns is None:
            return self.tokenizer.encode_ordinary(self.prompt(message))
        self.messages.append({"role": "user", "content": message})
        while True:
            ids = self.turns.encode_messages(self.messages[self.forgotten :])
            room = self.context_length - len(ids)
            if room >= min(self.max_new_tokens, self.context_length // 4):
                return ids
            if self.forgotten + 2 >= len(self.messages):  # the new message alone
                return ids
            self.forgotten += 2

    def answer(self, message: str) -> Iterator[str]:
        """Yield the answer piece by piece; ``ValueError`` for a message that is too long."""
        ids = self.prompt_ids(message)
        if len(ids) >= self.context_length:
            if self.turns is not None:
                self.messages.pop()
            raise ValueError(
                f"the message has {len(ids)} tokens with its prompt, the model reads at most "
                f"{self.context_length}: make it shorter"
            )
        text = ""
        try:
            for piece in stream_text(
                self.model,
                self.tokenizer,
                ids,
                self.max_new_tokens,
                self.sampling,
                stop_ids=self.stop_ids,
                stop_when_full=True,
                seed=self.seed,
            ):
                text += piece
                yield piece
        finally:  # also if the reader has heard enough
            if self.turns is not None:
                self.messages.append({"role": "assistant", "content": text})
            if self.seed is not None:
                self.seed += 1


def run_chat(args) -> int:
    """The command: one question (``--prompt``), or a conversation until Ctrl-C, Ctrl-D or /exit."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    Sampling(args.temperature, args.top_k)  # refuses numbers that make no sense, before loading
    chat, note = load_chat(args)
    if args.prompt is not None:
        show_answer(chat, args.prompt)
        return 0
    print(f"{note}\nCtrl-C stops an answer; Ctrl-D or /exit ends the chat.")
    converse(chat, lambda: input("\nYou: "))
    return 0


def load_chat(args) -> tuple[Chat, str]:
    """A chat with the model of the command line, and a line that says how it is asked."""
    device = pick_device(args.device)
    options = (device, args.max_new_tokens, args.temperature, args.top_k)
    path = Path(args.checkpoint)
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / "settings.json").is_file():
        loaded, settings = open_finetuned(path)
        saved_style = settings["prompt_style"]
    else:
        loaded, saved_style = load_pretrained(args.checkpoint), CHAT
    tokenizer = loaded.tokenizer
    if tokenizer is None and saved_style != CHAT and loaded.model_type == "gpt2":
        tokenizer = get_tokenizer("gpt2")  # a GPT of chapter 5 with fewer or more rows
    if tokenizer is None:
        raise ValueError(
            f"{args.checkpoint} came without a tokenizer: put its tokenizer.json there"
        )
    style = args.prompt_style or (loaded.chat if saved_style == CHAT else saved_style)
    stop_ids = loaded.stop_ids if isinstance(style, TurnFormat) else loaded.eos_ids
    chat = Chat(loaded.model, tokenizer, style, *options, stop_ids, seed=args.seed)
    return chat, greeting(style)


def greeting(prompt_style: str | TurnFormat | None) -> str:
    if prompt_style is None:
        return "This model was not finetuned on instructions: it goes on with what you write."
    if isinstance(prompt_style, TurnFormat):
        return "The model is shown the conversation so far."
    return f"Prompt style: {prompt_style}. Each message is answered by itself."


def converse(chat: Chat, read_message: Callable[[], str]) -> None:
    """Answer messages until there are no more; Ctrl-C ends an answer, or else the chat."""
    while True:
        try:
            message = read_message().strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if message in ("/exit", "/quit"):
            return
        if message:
            forgotten = chat.forgotten
            try:
                show_answer(chat, message)
            except ValueError as error:
                print(f"({error})")
            if chat.forgotten > forgotten:
                print(f"(the first {chat.forgotten} messages no longer fit and are forgotten)")


def show_answer(chat: Chat, message: str) -> None:
    """Print an answer as it is made; Ctrl-C ends it, and what was printed stays."""
    try:
        for piece in chat.answer(message):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
