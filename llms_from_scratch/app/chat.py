"""``llms-from-scratch chat``: talk in the terminal to a model, of chapter 7 or another one."""

from collections.abc import Callable, Iterator

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.generate import Sampling, stream_text
from llms_from_scratch.serving.speaking import Speaker, load_speaker


class Chat:
    """A conversation with a model, or, where it was not trained on them, single messages.

    ``note`` says what the model was not shown of the last one, if anything: the oldest messages are
    left out when they no longer fit into its context.
    """

    def __init__(
        self,
        speaker: Speaker,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ):
        self.speaker, self.sampling, self.seed = speaker, sampling or Sampling(), seed
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, str]] = []
        self.note = ""

    def answer(self, message: str) -> Iterator[str]:
        """Yield the answer piece by piece; ``ValueError`` for a message that is too long."""
        question = {"role": "user", "content": message}
        ids, self.note = self.speaker.fit([*self.messages, question], self.max_new_tokens)
        text = ""
        try:
            for piece in stream_text(
                self.speaker.model,
                self.speaker.tokenizer,
                ids,
                self.max_new_tokens,
                self.sampling,
                stop_ids=self.speaker.stop_ids,
                stop_when_full=True,
                seed=self.seed,
            ):
                text += piece
                yield piece
        finally:  # also if the reader has heard enough
            self.messages += [question, {"role": "assistant", "content": text}]
            if self.seed is not None:
                self.seed += 1


def run_chat(args) -> int:
    """The command: one question (``--prompt``), or a conversation until Ctrl-C, Ctrl-D or /exit."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    sampling = Sampling(args.temperature, args.top_k)  # refuses what makes no sense, before loading
    speaker = load_speaker(args.checkpoint, args.prompt_style, pick_device(args.device))
    chat = Chat(speaker, args.max_new_tokens, sampling, args.seed)
    if args.prompt is not None:
        show_answer(chat, args.prompt)
        return 0
    print(f"The model {speaker.kind}.\nCtrl-C stops an answer; Ctrl-D or /exit ends the chat.")
    converse(chat, lambda: input("\nYou: "))
    return 0


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
            if chat.note:
                print(f"({chat.note})")


def show_answer(chat: Chat, message: str) -> None:
    """Print an answer as it is made; Ctrl-C ends it, and what was printed stays."""
    try:
        for piece in chat.answer(message):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
