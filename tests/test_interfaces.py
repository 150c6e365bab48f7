"""The interfaces in a real browser: what is written is shown as text, answers stream and stop."""

import contextlib
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
import torch
from parrot import Parrot
from repository import ROOT

from llms_from_scratch.app.interface import (
    Conversation,
    conversation_page,
    label_page,
    launch,
    run_app,
)
from llms_from_scratch.app.qwen3_chat import build_repo_and_local, get_qwen_config
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch06 import replace_output_head, save_classifier
from llms_from_scratch.ch07 import save_finetuned
from llms_from_scratch.generate import generate_text
from llms_from_scratch.serving.engine import Engine
from llms_from_scratch.serving.speaking import Speaker, load_speaker
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.chat_formats import QwenFormat

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"
)
APPS = {
    "orig": ROOT / "ch05/06_user_interface/app_orig.py",
    "own": ROOT / "ch05/06_user_interface/app_own.py",
    "spam": ROOT / "ch06/04_user_interface/app.py",
    "instructions": ROOT / "ch07/06_user_interface/app.py",
    "qwen": ROOT / "ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface.py",
    "multiturn": ROOT / "ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface-multiturn.py",
}
TINY = {
    "vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1,
    "drop_rate": 0.0, "qkv_bias": False,
}  # fmt: skip
NASTY = (
    "  two  spaces\n    <script>alert(1)</script> <img src=x onerror=alert(2)> **bold** # title\n"
    "[link](javascript:alert(3)) `code` &lt; &amp; $x$ ${alert(4)} {{value}} </div></article>\n"
)
THINKING = "<think>I <b>wonder</b>.</think>\n\nSo be it.\n"


class SlowParrot(Parrot):
    """Takes its time for each token."""

    def forward(self, in_idx, cache, last_only=False):
        time.sleep(0.03)
        return super().forward(in_idx, cache, last_only)


def parrot(text: str, kind: type = Parrot, context_length: int = 4096) -> Speaker:
    """Says ``text`` over and over; each answer begins where the prompt ends in it."""
    tokenizer = get_tokenizer("gpt2")
    script = tokenizer.encode_ordinary(text)
    return Speaker("parrot", kind(script, context_length=context_length), tokenizer)


@contextlib.contextmanager
def shown(page):
    """Serve a page; yields its address."""
    url = launch(page, 0, wait=False)
    try:
        yield url
    finally:
        page.close(verbose=False)


@contextlib.contextmanager
def talking(speaker, **options):
    with Engine(speaker.model, speaker.tokenizer, speaker.stop_ids, slots=4) as engine:
        with shown(conversation_page("A chat", speaker, engine, **options)) as url:
            yield url, engine


@pytest.fixture(scope="module")
def tiny():
    return load_speaker("gpt2-tiny")


@pytest.fixture(scope="module")
def tiny_url(tiny):
    with talking(tiny) as (url, _):
        yield url


@pytest.fixture(scope="module")
def slow():
    with talking(parrot("one two three four five six seven. ", SlowParrot)) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium):
    """A browser window that notes each host that is asked for anything, and each dialog."""
    allowed = ["clipboard-read", "clipboard-write"]
    context = chromium.new_context(
        viewport={"width": 1200, "height": 820}, permissions=allowed, reduced_motion="reduce"
    )
    context.set_default_timeout(8_000)
    hosts, dialogs = set(), []
    context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    context.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    yield context
    context.close()
    assert hosts - {None} <= {"127.0.0.1"}
    assert dialogs == []


def visit(page, url: str) -> None:
    """Open a page and wait until it listens to what one does."""
    page.goto(url)
    page.locator("#message textarea").wait_for()
    page.wait_for_timeout(300)


class Tab:
    """What a person does with the page of a chat."""

    def __init__(self, context, url: str):
        self.page = context.new_page()
        visit(self.page, url)
        self.message = self.page.locator("#message textarea")
        self.figures = self.page.locator("#figures textarea")

    def set(self, label: str, value: float) -> None:
        number = self.page.get_by_label(f"number input for {label}")
        number.fill(str(value))
        number.blur()

    def send(self, text: str) -> None:
        self.message.fill(text)
        self.press("Send")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def texts(self, who: str = "assistant") -> list[str]:
        parts = self.page.locator(f".message.{who} > .text")
        return parts.evaluate_all("all => all.map((one) => one.textContent)")

    def wait_for(self, condition, what: str, seconds: float = 8) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.figures.input_value()!r}"
            self.page.wait_for_timeout(30)

    def answer(self) -> str:
        """The last answer, once it has ended."""
        self.wait_for(lambda: "ended" in self.figures.input_value(), "no end of the answer")
        return self.texts()[-1]


def is_idle(engine: Engine) -> bool:
    return engine.load()["running"] + engine.load()["waiting"] == 0


# --- A conversation


@needs_browser
def test_an_answer_grows_and_is_the_text_of_the_model(context, tiny, tiny_url):
    tab = Tab(context, tiny_url)
    tab.set("New tokens", 120)
    tab.send("Every effort moves you")
    lengths = set()
    tab.wait_for(
        lambda: (
            lengths.update(map(len, tab.texts())) or "ended: length" in tab.figures.input_value()
        ),
        "no end",
    )
    assert len(lengths) > 1  # parts of it, and all of it
    alone = generate_text(tiny.model, tiny.tokenizer, "Every effort moves you", 120)
    assert tab.texts("user") == ["Every effort moves you"] and tab.texts() == [alone]
    assert tab.figures.input_value().startswith("4 tokens shown, 120 new, ")
    likely = tab.page.locator("#probabilities").inner_text()
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(alone)[-1:]).strip() in likely
    assert "%" in likely
    box = tab.figures.bounding_box()
    assert box["y"] + box["height"] <= 820  # to be seen without scrolling


@needs_browser
def test_stop_ends_an_answer_and_frees_its_slot(context, slow):
    url, engine = slow
    tab = Tab(context, url)
    tab.send("one")
    tab.wait_for(lambda: tab.texts() and len(tab.texts()[-1]) > 20, "no text")
    tab.press("Stop")
    text = tab.answer()
    assert "ended: cancelled" in tab.figures.input_value() and is_idle(engine)
    assert tab.texts() == [text]  # what there was stays
    tab.set("New tokens", 3)
    tab.send("one")  # and it goes on
    tab.wait_for(lambda: "ended: length" in tab.figures.input_value(), "no second answer")
    assert len(tab.texts()) == 2


@needs_browser
def test_clear_empties_the_page_while_an_answer_is_on_its_way(context, slow):
    url, engine = slow
    tab = Tab(context, url)
    tab.send("one")
    tab.wait_for(lambda: tab.texts() and tab.texts()[-1], "no text")
    tab.message.fill("the next one")
    tab.press("Clear")
    tab.wait_for(lambda: not tab.texts("user") and is_idle(engine), "not cleared")
    tab.page.wait_for_timeout(300)  # nothing comes back
    assert tab.texts() == tab.texts("user") == [] and tab.figures.input_value() == ""
    assert tab.message.input_value() == "the next one"  # written while the answer came


@needs_browser
def test_a_closed_tab_frees_its_slot(context, slow):
    url, engine = slow
    tab = Tab(context, url)
    tab.send("one")
    tab.wait_for(lambda: tab.texts() and tab.texts()[-1], "no text")
    other = Tab(context, url)
    tab.page.close()
    other.wait_for(lambda: is_idle(engine), "the slot is not free")


@needs_browser
def test_temperature_makes_another_text_and_the_seed_the_same_again(context, tiny_url):
    tab = Tab(context, tiny_url)
    tab.set("New tokens", 12)
    answers = []
    for temperature in (0, 1.5, 1.5):
        tab.set("Temperature (0: likeliest)", temperature)
        tab.press("Clear")
        tab.wait_for(lambda: not tab.texts("user"), "not cleared")
        tab.send("Every effort moves you")
        answers.append(tab.answer())
    assert answers[0] != answers[1] == answers[2]


@needs_browser
def test_two_tabs_at_once_do_not_mix(context, tiny, tiny_url):
    prompts = ["Every effort moves you", "The old house on the hill"]
    tabs = [Tab(context, tiny_url) for _ in prompts]
    for tab, prompt in zip(tabs, prompts, strict=True):
        tab.set("New tokens", 100)
        tab.message.fill(prompt)
    for tab in tabs:
        tab.press("Send")
    for tab, prompt in zip(tabs, prompts, strict=True):
        assert tab.answer() == generate_text(tiny.model, tiny.tokenizer, prompt, 100)
        assert tab.texts("user") == [prompt]


@needs_browser
def test_a_very_long_message_is_trimmed_visibly_and_the_page_lives_on(context, tiny_url):
    tab = Tab(context, tiny_url)
    tab.set("New tokens", 5)
    tab.send("word " * 20_000)
    tab.answer()
    assert "tokens do not fit: left out" in tab.figures.input_value()
    assert len(tab.texts("user")[0]) == 100_000
    tab.send("Every effort")
    tab.wait_for(lambda: tab.figures.input_value().startswith("2 tokens shown"), "not answered")


@needs_browser
def test_a_message_that_cannot_be_answered_is_kept_and_says_why(context):
    speaker = parrot("one two", context_length=64)
    speaker.turns = Turns()
    with talking(speaker) as (url, _):
        tab = Tab(context, url)
        long = "word " * 100
        tab.send(long)
        tab.wait_for(lambda: "No answer: the message has" in tab.figures.input_value(), "no line")
        assert tab.message.input_value() == long and tab.texts("user") == []


@needs_browser
def test_what_people_and_models_write_is_text_and_never_markup(context):
    with talking(parrot(NASTY)) as (url, _):
        tab = Tab(context, url)
        length = len(get_tokenizer("gpt2").encode(NASTY))
        tab.set("New tokens", length)
        tab.send(NASTY)  # the answer begins where the script does
        assert tab.answer().strip() == NASTY.strip()
        assert tab.texts("user") == [NASTY]
        conversation = tab.page.locator("#conversation")
        assert conversation.locator("script, img, a, b, strong, code, h1").count() == 0
        assert conversation.locator("article").count() == 2
        visible = tab.page.locator(".message.user > .text").inner_text()
        assert visible.rstrip("\n") == NASTY.rstrip("\n")  # spaces and line breaks too
        tab.page.locator(".message.assistant .copy").click()
        assert tab.page.evaluate("navigator.clipboard.readText()") == tab.texts()[0]


@needs_browser
def test_thoughts_are_folded(context):
    script = get_tokenizer("gpt2").encode(THINKING)
    with talking(parrot(THINKING)) as (url, _):
        tab = Tab(context, url)
        tab.set("New tokens", len(script))
        tab.send(THINKING)
        assert tab.answer() == "So be it."
        assert tab.texts("user") == [THINKING]  # a person's are not
        thought = tab.page.locator(".message.assistant details")
        assert not thought.locator(".text").is_visible()
        thought.locator("summary").click()
        assert thought.locator(".text").is_visible()
        assert thought.locator(".text").text_content() == "I <b>wonder</b>."


@needs_browser
def test_the_keyboard_is_enough_and_all_controls_have_names(context, tiny_url):
    tab = Tab(context, tiny_url)
    tab.set("New tokens", 3)
    box = tab.page.get_by_label("Message (Enter sends it")
    box.press_sequentially("Every")
    box.press("Shift+Enter")
    box.press_sequentially("effort")
    assert tab.texts("user") == [] and box.input_value() == "Every\neffort"
    box.press("Enter")
    tab.answer()
    assert tab.texts("user") == ["Every\neffort"] and box.input_value() == ""
    tab.press("Clear")
    for label in ("Figures", "Seed (empty", "Conversation", "number input for Top-k"):
        assert tab.page.get_by_label(label).count() >= 1, label
    tab.send("   ")
    tab.wait_for(lambda: "Write a message" in tab.figures.input_value(), "no line")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_messages_can_be_read_in_light_and_dark(context, scheme, tiny_url):
    tab = Tab(context, f"{tiny_url}?__theme={scheme}")
    tab.set("New tokens", 2)
    tab.send("Every effort")
    tab.answer()
    for who in ("user", "assistant"):
        colors = tab.page.locator(f".message.{who}").evaluate(
            "e => [getComputedStyle(e.querySelector('.text')).color,"
            " getComputedStyle(e).backgroundColor]"
        )
        assert contrast(*colors) > 4.5, (who, colors)


def contrast(*colors: str) -> float:
    """Of two colours such as "rgb(1, 2, 3)", as WCAG has it: 4.5 is what text needs."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


SERVER = """
import sys
sys.path[:0] = {paths!r}
from test_interfaces import SlowParrot, parrot
from llms_from_scratch.app.interface import conversation, run_app
sys.argv[1:] = ["--port", {port!r}]
speaker = parrot("one two three. ", SlowParrot)
sys.exit(run_app("", "parrot", lambda model, device: conversation("A chat", speaker)))
"""


@contextlib.contextmanager
def app_process():
    """An app with a slow model, in a process of its own; yields it and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = [str(ROOT / "tests"), str(ROOT / "tests/helpers"), str(ROOT / "tools")]
    code = SERVER.format(paths=paths, port=str(port))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().startswith("Open http://127.0.0.1"), process.stderr.read()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@needs_browser
def test_a_page_whose_server_dies_says_so(context):
    with app_process() as (process, url):
        tab = Tab(context, url)
        tab.send("one")
        tab.wait_for(lambda: tab.texts() and len(tab.texts()[-1]) > 10, "no text")
        process.kill()
        tab.page.get_by_text("Connection").first.wait_for()
        tab.message.fill("the page lives")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child alone")
def test_ctrl_c_ends_an_app_without_a_traceback():
    with app_process() as (process, _):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (0, 130) and "Traceback" not in errors


# --- Without a browser


class Turns:
    """A form of conversation that can be read."""

    def encode_messages(self, messages):
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return get_tokenizer("gpt2").encode_ordinary(text)


def test_one_question_at_a_time_is_shown_without_the_earlier_ones():
    speaker = parrot("")
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>hm</think>two"},
        {"role": "user", "content": "three"},
    ]
    system = {"role": "system", "content": "Be kind."}
    forgets = Conversation(speaker, None, "Be kind.", remembers=False)
    assert forgets.shown(talk) == [system, talk[-1]]
    remembers = Conversation(speaker, None, "Be kind.")
    answer = {"role": "assistant", "content": "two"}  # without its thought
    assert remembers.shown(talk) == [system, talk[0], answer, talk[2]]


def test_a_taken_port_is_one_line(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", port])
        with pytest.raises(SystemExit) as stopped:
            run_app("", "model", lambda model, device: pytest.fail("loaded a model"))
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and port in errors and "another --port" in errors


# --- The table of labels


@needs_browser
def test_labels_are_shown_as_text_and_one_bad_message_loses_no_other(context):
    def classify(text: str) -> tuple[str, float]:
        if "bad" in text:
            raise ValueError("this one is bad")
        return ("spam" if "win" in text else "not spam"), 0.75

    lines = ["<img src=x onerror=alert(1)> **win**", "", "   ", "bad news", "see  you"]
    with shown(label_page("Spam?", classify)) as url:
        page = context.new_page()
        visit(page, url)
        page.get_by_label("Messages, one per line").fill("\n".join(lines))
        page.get_by_role("button", name="Classify").click()
        page.locator("#labels").get_by_text("75.0%").last.wait_for()
        rows = page.locator("#labels tr").evaluate_all(
            "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText))"
        )
        assert rows[1:] == [
            [lines[0], "spam", "75.0%", ""],
            ["bad news", "", "", "not read: this one is bad"],
            ["see  you", "not spam", "75.0%", ""],
        ]
        assert page.locator("#labels img, #labels strong").count() == 0


# --- The apps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders as the scripts of chapters 6 and 7 write them, with models that learnt little."""
    classifier = GPTModel(TINY)
    replace_output_head(classifier, 2)
    with torch.no_grad():
        classifier.out_head.weight.zero_()
        classifier.out_head.bias.copy_(torch.tensor([0.0, 9.0]))
    spam = tmp_path_factory.mktemp("classifier")
    save_classifier(spam, classifier, TINY, max_length=20)
    instructions = tmp_path_factory.mktemp("finetuned")
    save_finetuned(instructions, GPTModel(TINY), TINY, "alpaca")
    return {"spam": spam, "instructions": instructions, "own": instructions, "orig": "gpt2-tiny"}


@pytest.mark.parametrize("name", ["orig", "own", "spam", "instructions", "qwen", "multiturn"])
def test_each_app_makes_its_page(name, trained):
    make_page = runpy.run_path(str(APPS[name]))["make_page"]
    with make_page(str(trained.get(name, "gpt2-tiny")), "cpu") as page:
        assert page.title and len(page.fns) >= 1


@pytest.mark.parametrize("name", ["orig", "own", "spam", "instructions"])
def test_each_app_gives_model_and_tokenizer(name, trained):
    got = runpy.run_path(str(APPS[name]))["get_model_and_tokenizer"](trained[name])
    assert got[0].encode_ordinary("one") and isinstance(got[1], torch.nn.Module)


@pytest.mark.parametrize("name", ["own", "spam", "instructions", "qwen", "multiturn"])
def test_an_app_without_its_model_says_in_short_how_to_get_it(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(APPS[name]), "--port", "0"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(APPS[name]), run_name="__main__")
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and "--model" in errors and errors.count("\n") <= 3
    if name not in ("qwen", "multiturn"):
        assert "python ch0" in errors


def test_sizes_of_qwen3_have_a_configuration_and_a_folder(tmp_path):
    assert get_qwen_config("1.7B")["emb_dim"] == 2048
    assert build_repo_and_local("0.6B", True, tmp_path) == ("Qwen/Qwen3-0.6B", tmp_path)
    repo, folder = build_repo_and_local("4B", False)
    assert repo == "Qwen/Qwen3-4B-Base" and folder.name == "Qwen--Qwen3-4B-Base"
    with pytest.raises(ValueError, match="no Qwen3 of size '5B'"):
        get_qwen_config("5B")


class QwenMarks:
    """GPT-2's tokenizer, with the marks of ChatML."""

    special_tokens = {"<|im_start|>": 50300, "<|im_end|>": 50301, "<|endoftext|>": 50256}

    def encode_ordinary(self, text):
        return get_tokenizer("gpt2").encode_ordinary(text)


def test_the_prompt_of_a_history_is_what_the_model_is_shown():
    script = runpy.run_path(str(APPS["multiturn"]))
    history = [
        {"role": "system", "content": script["SYSTEM"]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "And now?"},
    ]
    names = {number: mark for mark, number in QwenMarks.special_tokens.items()}
    ids = QwenFormat(QwenMarks(), thinking=True).encode_messages(history)
    text = "".join(names.get(i) or get_tokenizer("gpt2").decode([i]) for i in ids)
    assert text == script["build_prompt_from_history"](history)
