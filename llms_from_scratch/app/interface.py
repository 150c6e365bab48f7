"""The chapters' user interfaces in the browser: a conversation, and a table of labels.

Gradio draws them (extra ``ui``). They listen on this machine alone, and neither load anything from
elsewhere nor send anything there.
"""

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import gradio as gr

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.app.talk import (
    CSS,
    JS,
    TABLE_CSS,
    Message,
    as_html,
    table_as_html,
    without_thoughts,
)
from llms_from_scratch.generate import Sampling, token_bytes
from llms_from_scratch.serving.engine import Busy, End, Engine, Job, Token
from llms_from_scratch.serving.server import listen
from llms_from_scratch.serving.speaking import Speaker

ALTERNATIVES = 8  # tokens in the panel of probabilities
SECONDS_BETWEEN_UPDATES = 0.05
LONGEST_MESSAGE = 1_000_000  # characters
MOST_ROWS = 1000  # messages that are classified at a time
FONTS = ["system-ui", "sans-serif"]  # those of the reader's system: none is loaded
NARROW_CSS = "#probabilities .confidence-set { margin: 0; padding: 0 }"  # to be seen at once


def run_app(
    description: str,
    default_model: str,
    make_page: Callable[[str, str], AbstractContextManager],
    default_device: str = "auto",
) -> int:
    """What the apps have in common: arguments, short errors, a page until Ctrl-C.

    ``make_page(model, device)`` gives a context in which the page can be shown.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=default_model, help=f"(default: {default_model})")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for any free one")
    parser.add_argument(
        "--device",
        default=default_device,
        help=f"auto, cpu, cuda or mps (default: {default_device})",
    )
    args = parser.parse_args()
    with short_errors(parser):
        with listen("127.0.0.1", args.port):  # is it free? A model takes longer to load
            pass
        with make_page(args.model, pick_device(args.device)) as page:
            launch(page, args.port)
    return 0


@contextmanager
def conversation(title: str, speaker: Speaker, **options) -> Iterator[gr.Blocks]:
    """The page of a chat, with the engine that answers it; ``options`` of ``conversation_page``."""
    with Engine(speaker.model, speaker.tokenizer, speaker.stop_ids) as engine:
        yield conversation_page(title, speaker, engine, **options)


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
    """Answers messages of many browser tabs at a time; each has its own text in progress.

    With ``remembers``, the model is shown the messages so far, else the last one by itself; and
    before either the ``system`` message, if there is one.
    """

    def __init__(self, speaker: Speaker, engine: Engine, system: str = "", remembers: bool = True):
        self.speaker, self.engine = speaker, engine
        self.system = [{"role": "system", "content": system}] if system else []
        self.remembers = remembers
        self.jobs: dict[str, Job] = {}  # by tab

    def respond(
        self,
        text: str,
        history: list[Message],
        temperature: float,
        top_k: int,
        top_p: float,
        max_new_tokens: int,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[tuple[str, list[Message], str, str, dict | None]]:
        """Yield the input box, the conversation and how it looks, figures, and probabilities."""
        if not text.strip():
            yield text, history, as_html(history), "Write a message first.", None
            return
        talk = [*history, {"role": "user", "content": text}]
        try:
            ids, note = self.speaker.fit(self.shown(talk), max_new_tokens)
            sampling = Sampling(temperature, int(top_k) or None, top_p)
            seed = None if seed is None else int(seed)
            job = Job(ids, int(max_new_tokens), sampling, seed, top_logprobs=ALTERNATIVES)
            self.jobs[request.session_hash] = job
            yield "", talk, as_html(talk), note, None
            for answer, figures, probabilities in self._answer(job):
                if self.jobs.get(request.session_hash) is not job:  # cleared meanwhile
                    yield gr.skip(), [], as_html([]), "", None
                    return
                now = [*talk, {"role": "assistant", "content": answer}]
                line = " | ".join(filter(None, [figures, note]))
                yield gr.skip(), now, as_html(now), line, probabilities
        except (ValueError, Busy, RuntimeError) as error:
            yield text, history, as_html(history), f"No answer: {error}", None

    def shown(self, talk: list[Message]) -> list[Message]:
        """What of a conversation the model is to be shown."""
        messages = talk if self.remembers else talk[-1:]
        return self.system + [
            message | {"content": without_thoughts(message["content"])}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]

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
        data = token_bytes(self.speaker.tokenizer, token_id)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = " ".join(f"{byte:02x}" for byte in data)
        return text.replace(" ", "\u2423").replace("\n", "\u23ce") + f"  ({token_id})"

    def stop(self, request: gr.Request) -> None:
        """End the text of a tab."""
        job = self.jobs.get(request.session_hash)
        if job is not None:
            self.engine.cancel(job)

    def close(self, request: gr.Request) -> None:
        """End the text of a tab, and show no more of it."""
        self.stop(request)
        self.jobs.pop(request.session_hash, None)

    def clear(self, request: gr.Request) -> tuple[list[Message], str, str, None]:
        self.close(request)
        return [], as_html([]), "", None


def conversation_page(
    title: str,
    speaker: Speaker,
    engine: Engine,
    *,
    system: str = "",
    remembers: bool = True,
    max_new_tokens: int = 200,
) -> gr.Blocks:
    """A chat with its controls, and the probabilities of the last step; see ``Conversation``."""
    talk = Conversation(speaker, engine, system, remembers)
    most = speaker.context_length - 1
    kind = speaker.kind if remembers else "is shown your last message only: it forgets the others"
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"## {title}\n{speaker.name} {kind}.")
        history = gr.State([])
        with gr.Row():
            with gr.Column(scale=3):
                shown = gr.HTML(
                    as_html([]), css_template=CSS, js_on_load=JS, elem_id="conversation"
                )
                message = gr.Textbox(
                    label="Message (Enter sends it, Shift+Enter begins a new line)",
                    max_lines=6,
                    max_length=LONGEST_MESSAGE,
                    elem_id="message",
                    autofocus=True,
                )
                with gr.Row():
                    send = gr.Button("Send", variant="primary")
                    stop = gr.Button("Stop")
                    clear = gr.Button("Clear")
                figures = gr.Textbox(label="Figures", interactive=False, elem_id="figures")
            with gr.Column(scale=1):
                controls = [
                    gr.Slider(0, 2, 0.0, step=0.05, label="Temperature (0: likeliest)"),
                    gr.Slider(0, 100, 0, step=1, label="Top-k (0: all tokens)"),
                    gr.Slider(0.05, 1, 1.0, step=0.05, label="Top-p"),
                    gr.Slider(1, most, min(max_new_tokens, most), step=1, label="New tokens"),
                    gr.Number(123, precision=0, label="Seed (empty: another one each time)"),
                ]
                probabilities = gr.Label(
                    label="What the model thought of for its last token",
                    num_top_classes=ALTERNATIVES,
                    show_heading=False,
                    elem_id="probabilities",
                )
        outputs = [message, history, shown, figures, probabilities]
        gr.on(
            [send.click, message.submit],
            talk.respond,
            [message, history, *controls],
            outputs,
            show_progress="hidden",
        )
        stop.click(talk.stop, queue=False)
        clear.click(talk.clear, outputs=outputs[1:], queue=False)
        page.unload(talk.close)  # the tab is closed
    return page


def label_page(title: str, classify: Callable[[str], tuple[str, float]]) -> gr.Blocks:
    """A box for messages, one a line, and a table with the label of each and its probability."""

    titles = ["Message", "Label", "Probability", "Note"]

    def table_of(text: str) -> Iterator[str]:
        lines = [line for line in text.splitlines() if line.strip()]
        rows, drawn = [], time.perf_counter()
        for line in lines[:MOST_ROWS]:
            rows.append([line, *_label(line, classify)])
            if time.perf_counter() - drawn > 0.5:
                yield table_as_html(titles, rows)
                drawn = time.perf_counter()
        if len(lines) > MOST_ROWS:
            rows.append([f"({len(lines) - MOST_ROWS:,} messages more)", "", "", "not read"])
        yield table_as_html(titles, rows)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"## {title}")
        text = gr.Textbox(
            label="Messages, one per line",
            lines=6,
            max_lines=12,
            max_length=LONGEST_MESSAGE,
            elem_id="message",
        )
        button = gr.Button("Classify", variant="primary")
        table = gr.HTML(css_template=TABLE_CSS, elem_id="labels")
        button.click(table_of, text, table, concurrency_limit=1, show_progress="hidden")
    return page


def _label(message: str, classify: Callable[[str], tuple[str, float]]) -> tuple[str, str, str]:
    """Label, probability and a note: a message that cannot be read does not stop the others."""
    with warnings.catch_warnings(record=True) as caught:  # that it is cut, say
        warnings.simplefilter("always", UserWarning)
        try:
            label, probability = classify(message)
        except (ValueError, RuntimeError) as error:
            return "", "", f"not read: {error}"
    return label, f"{probability:.1%}", "; ".join(str(warning.message) for warning in caught)


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
        css=NARROW_CSS,
        theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
    )
    if wait:
        print(f"Open {address} in a browser. Ctrl-C ends it.", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()
    return address
