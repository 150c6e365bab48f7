"""``llms-from-scratch chat``: talk in the terminal to a model that was finetuned in chapter 7."""

from collections.abc import Callable, Iterator

import torch

from llms_from_scratch.app.script_tools import TextStream, pick_device
from llms_from_scratch.ch05 import generate_stream
from llms_from_scratch.ch07 import find_prompt_style, load_finetuned
from llms_from_scratch.tokenizer import get_tokenizer


class Chat:
    """A model, and how it is asked: each message is an instruction of its own.

    The models of chapter 7 were trained on single instructions, so earlier messages are not
    shown to them. Without a ``prompt_style``, the model just goes on with the text.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer,
        prompt_style: str | None,
        device: torch.device | str = "cpu",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
    ):
        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.style = find_prompt_style(prompt_style) if prompt_style else None
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k
        self.context_length = model.pos_emb.num_embeddings

    def prompt(self, message: str) -> str:
        """The message as the model knows instructions, up to where the response begins.

        The first line is the instruction; lines that follow it are its input.
        """
        if self.style is None:
            return message
        instruction, _, rest = message.partition("\n")
        entry = {"instruction": instruction, "input": rest}
        return self.style.format_input(entry) + self.style.response_header

    def answer(self, message: str) -> Iterator[str]:
        """Yield the answer piece by piece; ``ValueError`` for a message that is too long."""
        token_ids = self.tokenizer.encode_ordinary(self.prompt(message))
        room = self.context_length - len(token_ids)
        if room < 1:
            raise ValueError(
                f"the message has {len(token_ids)} tokens with its prompt, the model reads at most "
                f"{self.context_length}: make it shorter"
            )
        stream = TextStream(self.tokenizer)
        new_tokens = generate_stream(
            self.model,
            torch.tensor([token_ids], device=self.device),
            min(self.max_new_tokens, room),
            self.context_length,
            temperature=self.temperature,
            top_k=self.top_k,
            eos_id=self.tokenizer.eot_token,
        )
        for token_id in new_tokens:
            yield stream.add(token_id.item())
        yield stream.rest()


def run_chat(args) -> int:
    """The command: one question (``--prompt``), or a conversation until Ctrl-C, Ctrl-D or /exit."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if args.temperature < 0 or (args.top_k or 0) < 0:
        raise ValueError("--temperature and --top-k must not be negative")
    device = pick_device(args.device)
    model, settings = load_finetuned(args.checkpoint)
    torch.manual_seed(args.seed)
    chat = Chat(
        model,
        get_tokenizer("gpt2"),
        args.prompt_style or settings["prompt_style"],
        device,
        args.max_new_tokens,
        args.temperature,
        args.top_k,
    )
    if args.prompt is not None:
        show_answer(chat, args.prompt)
        return 0
    print(greeting(chat, args.prompt_style or settings["prompt_style"]))
    converse(chat, lambda: input("\nYou: "))
    return 0


def greeting(chat: Chat, prompt_style: str | None) -> str:
    if prompt_style is None:
        note = "This model was not finetuned on instructions: it goes on with what you write."
    else:
        note = f"Prompt style: {prompt_style}. Each message is answered by itself."
    return f"{note}\nCtrl-C stops an answer; Ctrl-D or /exit ends the chat."


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
            try:
                show_answer(chat, message)
            except ValueError as error:
                print(f"({error})")


def show_answer(chat: Chat, message: str) -> None:
    """Print an answer as it is made; Ctrl-C ends it, and what was printed stays."""
    try:
        for piece in chat.answer(message):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
