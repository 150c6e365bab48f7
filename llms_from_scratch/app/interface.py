"""The chapters' user interfaces in the browser: a conversation, and a table of labels.

Gradio draws them (extra ``ui``). They listen on this machine alone, and neither load anything from
elsewhere nor send anything there.
"""

import argparse
import html
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import gradio as gr

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.generate import Sampling
from llms_from_scratch.serving.engine import Busy, End, Engine, Job, Token
from llms_from_scratch.serving.server import listen
from llms_from_scratch.serving.speaking import Speaker

ALTERNATIVES = 8  # tokens in the panel of probabilities
SECONDS_BETWEEN_UPDATES = 0.05
LONGEST_MESSAGE = 1_000_000  # characters
THINKING = [("<think>", "</think>")]  # what is between them is folded
FONTS = ["system-ui", "sans-serif"]  # those of the reader's system: none is loaded
History = list[dict]


def run_app(
    description: str, default_model: str, make_page: Callable[[str, str], AbstractContextManager]
) -> int:
    """What the apps have in common: arguments, short errors, a page until Ctrl-C.

    ``make_page(model, device)`` gives a context in which the page can be shown.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=default_model, help=f"(default: {default_model})")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for any free one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    with short_errors(parser):
        with make_page(args.model, pick_device(args.device)) as page:
            launch(page, args.port)
    return 0


@contextmanager
def conversation(title: str, speaker: Speaker) -> Iterator[gr.Blocks]:
    """The page of a chat, with the engine that answers it."""
    with Engine(speaker.model, speaker.tokenizer, speaker.stop_ids) as engine:
        yield conversation_page(title, speaker, engine)


def trained_model(folder: str | Path, command: str, *files: str) -> Path:
    """The folder of what the reader trained; ``FileNotFoundError`` says how to make it."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in files):
        raise FileNotFoundError(
            f"there is no {' or '.join(files)} in {folder}: train the model first, with\n"
            f"  {command}\nor name another one with --model"
        )
    return folder


class Conversation:
    """Answers messages of many browser tabs at a time; each has its own text in progress."""

    def __init__(self, speaker: Speaker, engine: Engine):
        self.speaker, self.engine = speaker, engine
        self.jobs: dict[str, Job] = {}  # by tab

    def respond(
        self,
        message: str,
        history: History,
        temperature: float,
        top_k: int,
        top_p: float,
        max_new_tokens: int,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[tuple[str, History, str, dict | None]]:
        """Yield the input box, the conversation, a line of figures, and probabilities."""
        if not message.strip():
            yield message, history, "Write a message first.", None
            return
        try:
            shown = [*history, {"role": "user", "content": shown_as_it_is(message)}]
            ids, note = self.speaker.fit(plain(shown), max_new_tokens)
            sampling = Sampling(temperature, int(top_k) or None, top_p)
            job = Job(ids, int(max_new_tokens), sampling, seed, top_logprobs=ALTERNATIVES)
            yield "", shown, note, None
            self.jobs[request.session_hash] = job
            for text, figures, probabilities in self._answer(job):
                answer = {"role": "assistant", "content": shown_as_it_is(text)}
                yield "", [*shown, answer], " | ".join(filter(None, [figures, note])), probabilities
        except (ValueError, Busy, RuntimeError) as error:
            yield message, history, f"No answer: {error}", None

    def _answer(self, job: Job) -> Iterator[tuple[str, str, dict | None]]:
        """Text so far, figures, and the last token's alternatives; not more often than is seen."""
        text, tokens, last, drawn = "", 0, None, 0.0
        started = time.perf_counter()
        for event in self.engine.stream(job):
            text += event.text
            if isinstance(event, Token):
                last, tokens = event, tokens + 1
            now = time.perf_counter()
            if isinstance(event, End) or now - drawn >= SECONDS_BETWEEN_UPDATES:
                drawn = now
                figures = f"{len(job.prompt)} tokens shown, {tokens} new, "
                figures += f"{tokens / max(now - started, 1e-9):.1f} tokens/s"
                if isinstance(event, End):
                    figures += f", ended: {event.reason}"
                yield text, figures, self.alternatives(last)

    def alternatives(self, token: Token | None) -> dict[str, float] | None:
        """What the model might have said, with probabilities, for ``gr.Label``."""
        if token is None:
            return None
        return {self.spell(token_id): math.exp(p) for token_id, p in token.top}

    def spell(self, token_id: int) -> str:
        """A token as one can see it: spaces and line breaks too, and half a character as bytes."""
        data = self.speaker.tokenizer.decode_single_token_bytes(token_id)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = " ".join(f"{byte:02x}" for byte in data)
        return text.replace(" ", "\u2423").replace("\n", "\u23ce") + f"  ({token_id})"

    def stop(self, request: gr.Request) -> None:
        """End the text of a tab."""
        job = self.jobs.pop(request.session_hash, None)
        if job is not None:
            self.engine.cancel(job)

    def clear(self, request: gr.Request) -> tuple[History, str, None]:
        self.stop(request)
        return [], "", None


def shown_as_it_is(text: str) -> str:
    """A text that a page shows without taking any of it for markup, but for folded thoughts.

    >>> shown_as_it_is("<think>2 < 3</think> <b>Yes</b>")
    '<think>2 &lt; 3</think> &lt;b&gt;Yes&lt;/b&gt;'
    """
    text = html.escape(text, quote=False)
    for mark in THINKING[0]:
        text = text.replace(html.escape(mark), mark)
    return text


def plain(history: History) -> list[dict[str, str]]:
    """Messages as the model needs them: without its thoughts, and as they were before escaping."""

    def text_of(content) -> str:
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part.get("type") == "text")

    return [
        {"role": message["role"], "content": html.unescape(text_of(message["content"]))}
        for message in history
        if not (message.get("metadata") or {}).get("title")  # a folded thought
    ]


def conversation_page(title: str, speaker: Speaker, engine: Engine) -> gr.Blocks:
    """A chat with its controls, and the probabilities of the last step."""
    talk = Conversation(speaker, engine)
    most = speaker.context_length - 1
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"## {title}\n{speaker.name} {speaker.kind}.")
        with gr.Row():
            with gr.Column(scale=3):
                chat = gr.Chatbot(
                    label="Conversation",
                    height=460,
                    render_markdown=False,  # what the model writes is shown as it is
                    reasoning_tags=THINKING,
                    buttons=["copy", "copy_all"],
                )
                message = gr.Textbox(
                    label="Message", lines=2, max_length=LONGEST_MESSAGE, elem_id="message"
                )
                with gr.Row():
                    send = gr.Button("Send", variant="primary")
                    stop = gr.Button("Stop")
                    clear = gr.Button("Clear")
                figures = gr.Textbox(label="Figures", interactive=False, elem_id="figures")
            with gr.Column(scale=1):
                controls = [
                    gr.Slider(0, 2, 0.0, step=0.05, label="Temperature (0: the most probable)"),
                    gr.Slider(0, 100, 0, step=1, label="Top-k (0: all tokens)"),
                    gr.Slider(0.05, 1, 1.0, step=0.05, label="Top-p"),
                    gr.Slider(1, most, min(200, most), step=1, label="New tokens at most"),
                    gr.Number(123, precision=0, label="Seed (empty: another one each time)"),
                ]
                probabilities = gr.Label(
                    label="What the model thought of for its last token",
                    num_top_classes=ALTERNATIVES,
                    show_heading=False,
                )
        inputs, outputs = [message, chat, *controls], [message, chat, figures, probabilities]
        gr.on([send.click, message.submit], talk.respond, inputs, outputs, show_progress="hidden")
        stop.click(talk.stop, queue=False)
        clear.click(talk.clear, outputs=[chat, figures, probabilities], queue=False)
        page.unload(talk.stop)  # the tab is closed
    return page


def label_page(title: str, classify: Callable[[str], tuple[str, float]]) -> gr.Blocks:
    """A box for messages, one a line, and a table with the label of each and its probability."""

    def rows(text: str) -> list[list]:
        messages = [line for line in text.splitlines() if line.strip()]
        return [[line, label, f"{p:.1%}"] for line in messages for label, p in [classify(line)]]

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"## {title}")
        text = gr.Textbox(
            label="Messages, one per line", lines=6, max_length=LONGEST_MESSAGE, elem_id="message"
        )
        button = gr.Button("Classify", variant="primary")
        table = gr.Dataframe(
            headers=["Message", "Label", "Probability"],
            datatype="str",
            interactive=False,
            wrap=True,
        )
        button.click(rows, text, table)
    return page


def launch(page: gr.Blocks, port: int, *, wait: bool = True) -> str:
    """Show a page on this machine, until Ctrl-C if one waits; returns its address.

    Raises ``ValueError`` if the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with listen("127.0.0.1", port) as listening:  # is it free? Gradio's own message is longer
        port = listening.getsockname()[1]
    page.queue(default_concurrency_limit=32)
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
    )
    if wait:
        print(f"Open {address} in a browser. Ctrl-C ends it.", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()
    return address
