"""The server speaks both protocols to the real clients, and keeps its texts apart."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import ollama
import openai
import pytest
import requests
import torch
from local_server import served, wait_until_idle
from parrot import Parrot

from llms_from_scratch.app.cli import main
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch06 import replace_output_head, save_classifier
from llms_from_scratch.generate import generate_text
from llms_from_scratch.judge import query_model
from llms_from_scratch.serving.engine import Busy, End, Engine, Job, Token
from llms_from_scratch.serving.requests import Service
from llms_from_scratch.serving.server import greeting
from llms_from_scratch.serving.speaking import Speaker, load_speaker
from llms_from_scratch.tokenizer import get_tokenizer

GREEDY = {"temperature": 0, "num_predict": 12}
PROMPT = "Every effort moves you"
SCRIPT = "Zażółć 🦙🏽 日本語, e\u0301 <script>alert(1)</script>\n"


@pytest.fixture(scope="module")
def speaker():
    return load_speaker("gpt2-tiny")


@pytest.fixture(scope="module")
def url(speaker):
    with served(speaker, aliases=["llama3"]) as url:
        yield url


@pytest.fixture(scope="module")
def alone(speaker):
    """The text that follows a prompt, by the decoding loop without a server."""

    def text(prompt: str, new_tokens: int = 12) -> str:
        return generate_text(speaker.model, speaker.tokenizer, prompt, new_tokens, stop_ids=[50256])

    return text


@pytest.fixture(scope="module")
def parrot():
    tokenizer = get_tokenizer("gpt2")
    return Speaker("parrot", Parrot(tokenizer.encode(SCRIPT), context_length=4096), tokenizer)


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


# --- Ollama's protocol


def test_the_ollama_client_gets_the_text_that_the_model_gives_alone(url, alone):
    client = ollama.Client(url)
    messages = [{"role": "user", "content": PROMPT}]
    whole = client.chat("gpt2-tiny", messages, options=GREEDY)
    assert whole.message.content == alone(PROMPT)
    assert (whole.prompt_eval_count, whole.eval_count, whole.done_reason) == (4, 12, "length")
    parts = list(client.chat("gpt2-tiny", messages, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == alone(PROMPT)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    parts = client.generate("gpt2-tiny", PROMPT, options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == alone(PROMPT)
    assert client.generate("gpt2-tiny", PROMPT, options=GREEDY).response == alone(PROMPT)


def test_the_ollama_client_is_told_about_the_model(url):
    client = ollama.Client(url)
    assert [model.model for model in client.list().models] == ["gpt2-tiny:latest", "llama3:latest"]
    shown = client.show("llama3")
    assert shown.modelinfo["gpt2.context_length"] == 256
    assert shown.details.parameter_size == "22.0M"


def test_query_model_of_chapter_7_works_unchanged(url, alone):
    answer = query_model(PROMPT, model="llama3", url=f"{url}/api/chat")
    assert answer.startswith(alone(PROMPT))
    assert answer == query_model(PROMPT, model="llama3", url=f"{url}/api/chat")


def test_stop_strings_end_a_text_before_them(url, alone):
    text = alone(PROMPT, 30)
    stop = text[10:14]
    answer = ollama.Client(url).generate("gpt2-tiny", PROMPT, options=GREEDY | {"stop": [stop]})
    assert answer.response == text[: text.index(stop)] and answer.done_reason == "stop"
    chat = openai_client(url).chat.completions.create(
        model="gpt2-tiny", messages=[{"role": "user", "content": PROMPT}], temperature=0, stop=stop
    )
    assert chat.choices[0].message.content == text[: text.index(stop)]
    assert chat.choices[0].finish_reason == "stop"


# --- OpenAI's protocol


def test_the_openai_client_gets_the_text_that_the_model_gives_alone(url, alone):
    client = openai_client(url)
    assert [model.id for model in client.models.list()] == ["gpt2-tiny", "llama3"]
    chat = {"model": "gpt2-tiny", "temperature": 0, "max_tokens": 12}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    whole = client.chat.completions.create(messages=messages, **chat)
    assert whole.choices[0].message.content == alone(PROMPT)
    assert whole.usage.completion_tokens == 12 and whole.usage.total_tokens == 16
    parts = list(
        client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **chat
        )
    )
    texts = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(texts) == alone(PROMPT)
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage == whole.usage
    several = client.completions.create(prompt=[PROMPT, "Hello"], n=2, **chat)
    expected = [alone(PROMPT)] * 2 + [alone("Hello")] * 2
    assert [choice.text for choice in several.choices] == expected
    assert several.usage.prompt_tokens == 4 + 1  # each prompt once, however many choices it has


def test_a_seed_repeats_a_text_and_another_seed_gives_another(url):
    client = openai_client(url)

    def draw(seed):
        options = {"temperature": 1.2, "max_tokens": 20, "seed": seed, "n": 2}
        choices = client.completions.create(model="gpt2-tiny", prompt=PROMPT, **options).choices
        return [choice.text for choice in choices]

    assert draw(1) == draw(1) != draw(2)
    assert draw(1)[0] != draw(1)[1]


@torch.inference_mode()
def test_log_probabilities_are_those_of_the_model(url, speaker):
    client = openai_client(url)
    options = {"model": "gpt2-tiny", "temperature": 0, "max_tokens": 5}
    ids = speaker.tokenizer.encode(PROMPT)
    got = client.completions.create(prompt=PROMPT, logprobs=3, **options).choices[0].logprobs
    messages = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(
        messages=messages, logprobs=True, top_logprobs=3, **options
    )
    entries = chat.choices[0].logprobs.content
    for i, token in enumerate(got.tokens):
        logprobs = speaker.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        values, top = logprobs.topk(3)
        assert token == entries[i].token == speaker.tokenizer.decode([top[0]])
        assert got.token_logprobs[i] == pytest.approx(values[0].item(), abs=1e-4)
        texts = [speaker.tokenizer.decode([token_id]) for token_id in top.tolist()]
        expected = dict(zip(texts, values.tolist(), strict=True))
        assert got.top_logprobs[i] == pytest.approx(expected, abs=1e-4)
        entry = {top.token: top.logprob for top in entries[i].top_logprobs}
        assert entry == pytest.approx(expected, abs=1e-4)
        ids.append(top[0].item())


def test_characters_of_several_tokens_arrive_whole_in_every_stream(parrot):
    n = 3 * len(parrot.tokenizer.encode(SCRIPT))
    prompt = "x"  # one token, at position 0
    with served(parrot) as url:
        client = openai_client(url)
        stream = client.completions.create(
            model="parrot", prompt=prompt, max_tokens=n, temperature=0, stream=True
        )
        pieces = [part.choices[0].text for part in stream]
        assert "".join(pieces) == 3 * SCRIPT
        assert "\ufffd" not in "".join(pieces)
        parts = ollama.Client(url).generate(
            "parrot", prompt, stream=True, options={"num_predict": n, "temperature": 0}
        )
        assert "".join(part.response for part in parts) == 3 * SCRIPT
        cut = client.completions.create(model="parrot", prompt=prompt, max_tokens=3, temperature=0)
        assert cut.choices[0].text == parrot.tokenizer.decode(parrot.tokenizer.encode(SCRIPT)[:3])


# --- Many at a time


def test_texts_that_are_made_together_are_those_that_are_made_alone(url, alone):
    prompts = [f"{'The story goes on. ' * (i % 5)}Number {i} is" for i in range(24)]

    def ask(prompt):
        options = {"temperature": 0, "num_predict": 15 + len(prompt) % 7}
        return ollama.Client(url).generate("gpt2-tiny", prompt, options=options).response

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == alone(prompt, 15 + len(prompt) % 7)


def test_a_full_queue_is_answered_with_503_and_when_to_come_back(parrot):
    body = {"model": "parrot", "prompt": "x", "options": {"num_predict": 800}}
    with served(parrot, slots=1, queue_size=1) as url:
        streams = []
        for count in (1, 2):
            streams.append(requests.post(f"{url}/api/generate", json=body, stream=True, timeout=20))
            while sum(requests.get(f"{url}/health", timeout=9).json()[k] for k in LOAD) < count:
                time.sleep(0.01)
        refused = requests.post(f"{url}/api/generate", json=body, timeout=20)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert "waiting already: try again" in refused.json()["error"]
        chat = {"model": "parrot", "messages": [{"role": "user", "content": "x"}]}
        refused = requests.post(f"{url}/v1/chat/completions", json=chat, timeout=20)
        assert refused.status_code == 503 and "waiting" in refused.json()["error"]["message"]
        for stream in streams:
            stream.close()
        wait_until_idle(url)
        assert requests.post(f"{url}/api/generate", json=body, timeout=60).status_code == 200


LOAD = ("running", "waiting")


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_frees_its_slot(parrot, is_streamed):
    slow = Speaker("parrot", Slow(parrot.model.script.tolist()), parrot.tokenizer)
    body = json.dumps({"model": "parrot", "prompt": "x", "stream": is_streamed})
    with served(slow, slots=1) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                f"POST /api/generate HTTP/1.1\r\nHost: {host}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            while not requests.get(f"{url}/health", timeout=9).json()["running"]:
                time.sleep(0.01)
        wait_until_idle(url, seconds=5)  # the whole text would take ten times as long


class Slow(Parrot):
    """0.2 seconds a token."""

    def forward(self, *args, **options):
        time.sleep(0.2)
        return super().forward(*args, **options)


def test_a_client_that_reads_nothing_holds_nobody_up(parrot):
    with served(parrot, slots=2) as url:
        body = {"model": "parrot", "prompt": "x", "options": {"num_predict": 800}}
        sleeper = requests.post(f"{url}/api/generate", json=body, stream=True, timeout=60)
        for _ in range(3):
            options = {"num_predict": 50}
            assert ollama.Client(url).generate("parrot", "x", options=options).eval_count == 50
        lines = [json.loads(line) for line in sleeper.iter_lines()]
        assert lines[-1]["eval_count"] == 800  # and it gets all in the end


# --- What cannot be answered


MESSAGES = [{"role": "user", "content": "Hi"}]
BAD_VALUES = {
    "temperature": [-1, "hot", "NaN", "1e999", True, 1e-40],
    "top_p": [-0.1, 1.1, "NaN", []],
    "seed": [0.5, "1", 10**30],
    "max_tokens": [0, -1, 1.5, 10**30, "many"],
    "stop": [3, [3], ["x"] * 17],
    "stream": ["yes", 1],
    "n": [0, 9, 1.5],
    "frequency_penalty": [0.5],
    "top_logprobs": [21, -1],
    "messages": [[], "Hi", [{"role": "tool", "content": "x"}], [{"role": "user"}], [3], None],
    "model": [3, None, ["gpt2-tiny"]],
    "tools": [[{"type": "function"}]],
    "nonsense": [1],
}
BAD_OPTIONS = {
    "temperature": [-1, "hot", "NaN", "1e999", 1e-40],
    "top_k": [-1, 1.5],
    "top_p": [2],
    "min_p": [-1],
    "repeat_penalty": [0, "NaN"],
    "num_predict": [-3, 10**6, 1.5],
    "num_ctx": [0, 1],
    "seed": [1.5, 2**64],
    "stop": [[1]],
    "mirostat": [1],
}


def raw_json(body: dict) -> str:
    """JSON in which "NaN" and "1e999" stand without quotes, as no careful client writes them."""
    return json.dumps(body).replace('"NaN"', "NaN").replace('"1e999"', "1e999")


@pytest.mark.parametrize("field", BAD_VALUES)
def test_openai_bodies_that_make_no_sense_are_named(url, field):
    for value in BAD_VALUES[field]:
        body = {"model": "gpt2-tiny", "messages": MESSAGES} | {field: value}
        response = requests.post(f"{url}/v1/chat/completions", raw_json(body), timeout=20)
        assert response.status_code == 400, (value, response.text)
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        named = {"max_tokens": "new tokens"}.get(field, field)
        assert field in error["message"] or named in error["message"]


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_ollama_options_that_make_no_sense_are_named(url, option):
    for value in BAD_OPTIONS[option]:
        body = {"model": "gpt2-tiny", "prompt": "Hi", "options": {option: value}}
        response = requests.post(f"{url}/api/generate", raw_json(body), timeout=20)
        assert response.status_code == 400, (value, response.text)
        named = {"num_predict": "new tokens"}.get(option, option)
        message = response.json()["error"]
        assert option in message or named in message


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"model": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(url, path, body):
    response = requests.post(url + path, body, timeout=20)
    assert response.status_code == 400
    assert response.json()["error"]


def test_unknown_models_paths_and_methods_are_named_in_each_protocols_form(url):
    with pytest.raises(ollama.ResponseError, match="'nosuch' is not served.*gpt2-tiny") as error:
        ollama.Client(url).chat("nosuch", MESSAGES)
    assert error.value.status_code == 404
    with pytest.raises(openai.NotFoundError, match="'nosuch' is not served"):
        openai_client(url).chat.completions.create(model="nosuch", messages=MESSAGES)
    assert requests.get(f"{url}/api/nosuch", timeout=9).json() == {
        "error": "there is no GET /api/nosuch here"
    }
    response = requests.delete(f"{url}/v1/models", timeout=9)
    assert response.status_code == 405 and "DELETE" in response.json()["error"]["message"]


def test_prompts_that_do_not_fit_are_refused_with_their_length(url):
    with pytest.raises(openai.BadRequestError, match="300 tokens.*at most 256") as error:
        openai_client(url).completions.create(model="gpt2-tiny", prompt=[1] * 300)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(ollama.ResponseError, match="num_ctx 3"):
        ollama.Client(url).generate("gpt2-tiny", PROMPT, options={"num_ctx": 3})
    for prompt in ([], "", [50257], [-1]):
        with pytest.raises(openai.BadRequestError, match="prompt|ids"):
            openai_client(url).completions.create(model="gpt2-tiny", prompt=prompt)


def test_damaged_weights_are_an_error_and_the_server_goes_on(speaker):
    model = GPTModel(speaker.model.cfg | {"n_layers": 1})
    broken = Speaker("broken", model, speaker.tokenizer)
    with served(broken) as url:
        with torch.no_grad():
            model.final_norm.scale.fill_(float("nan"))
        with pytest.raises(ollama.ResponseError, match="no finite maximum"):
            ollama.Client(url).generate("broken", PROMPT)
        with pytest.raises(ollama.ResponseError, match="no finite maximum"):
            list(ollama.Client(url).generate("broken", PROMPT, stream=True))
        with pytest.raises(openai.APIError, match="no finite maximum"):
            list(openai_client(url).completions.create(model="broken", prompt="x", stream=True))
        with torch.no_grad():
            model.final_norm.scale.fill_(1.0)
        assert ollama.Client(url).generate("broken", PROMPT, options=GREEDY).eval_count == 12


# --- Who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:11434", "localhost.evil.example", "[", ""]
)
def test_other_names_of_this_machine_are_refused(url, host):
    response = requests.get(f"{url}/api/tags", headers={"Host": host}, timeout=9)
    assert response.status_code in (400, 403)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80", "192.0.2.7"]
)
def test_addresses_and_localhost_are_known(url, host):
    assert requests.get(f"{url}/api/tags", headers={"Host": host}, timeout=9).ok


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://"]
)
def test_web_pages_from_elsewhere_cannot_drive_the_model(url, origin):
    body = {"model": "gpt2-tiny", "prompt": "Hi"}
    response = requests.post(
        f"{url}/api/generate", json=body, headers={"Origin": origin}, timeout=9
    )
    assert response.status_code == 403
    assert "Access-Control-Allow-Origin" not in response.headers
    assert requests.get(f"{url}/api/tags", headers={"Origin": url}, timeout=9).ok


def test_with_a_key_only_who_has_it_is_answered(parrot):
    with served(parrot, api_key="s3cret") as url:
        assert requests.get(f"{url}/health", timeout=9).ok
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cre"}):
            response = requests.get(f"{url}/v1/models", headers=headers, timeout=9)
            assert response.status_code == 401 and "s3cret" not in response.text
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["parrot"]


def test_a_body_that_is_too_long_is_refused_also_if_it_does_not_say_so(parrot):
    with served(parrot, max_bytes=1000) as url:
        for body in (b"x" * 1001, iter([b"x" * 600] * 2)):
            response = requests.post(f"{url}/api/chat", body, timeout=9)
            assert response.status_code == 413
            assert "more than 1000 bytes" in response.json()["error"]


# --- Other models, and the command


def test_a_classifier_answers_with_its_label(tmp_path, speaker):
    cfg = {
        "vocab_size": 50257, "context_length": 32, "emb_dim": 16, "n_layers": 1, "n_heads": 2,
        "drop_rate": 0.0, "qkv_bias": True,
    }  # fmt: skip
    model = GPTModel(cfg)
    replace_output_head(model, 2)
    with torch.no_grad():
        model.out_head.weight.zero_()
        model.out_head.bias.copy_(torch.tensor([0.0, 9.0]))
    save_classifier(tmp_path, model, cfg, max_length=20)
    classifier = load_speaker(tmp_path)
    with served(classifier) as url:
        chat = ollama.Client(url).chat(classifier.name, MESSAGES)
        assert chat.message.content == "spam"
        with pytest.raises(ollama.ResponseError, match="empty"):
            ollama.Client(url).chat(classifier.name, [{"role": "user", "content": "  "}])


def test_an_engine_without_a_server_streams_to_the_thread_that_asks(parrot):
    with Engine(parrot.model, parrot.tokenizer, slots=1, queue_size=1) as engine:
        events = list(engine.stream(Job([5], 4, top_logprobs=2)))
        assert [type(event) for event in events] == [Token] * 4 + [End]
        assert len(events[0].top) == 2
        for _ in engine.stream(Job([5], 100)):
            break  # and the slot is free again
        assert len(list(engine.stream(Job([5], 4)))) == 5
    with pytest.raises(Busy):
        engine.submit(Job([5], 4))


def serve(*args: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llms_from_scratch.app.cli", "serve", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child alone")
def test_ctrl_c_ends_the_server_and_the_streams_that_are_on_their_way():
    process = serve("gpt2-tiny", "--port", "0", "--max-new-tokens", "200")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    url = lines[1].split()[-1]
    stream = requests.post(
        url, json={"model": "gpt2-tiny", "messages": MESSAGES}, stream=True, timeout=30
    )
    received = stream.iter_lines()
    next(received)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    rest = [json.loads(line) for line in received]
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - started < 10
    assert rest[-1].get("error") == "the server is stopping" or rest[-1]["done"]
    assert "Traceback" not in process.stdout.read()


def test_the_command_names_what_is_wrong_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for args, said in (
            (("gpt2-tiny", "--port", port), f"port {port}.*another server"),
            (("nosuch-model", "--port", "0"), "neither a known model"),
            (("gpt2-tiny", "--port", "70000"), "from 0"),
            (("gpt2-tiny", "--host", "192.0.2.1", "--port", "0"), "cannot listen on 192.0.2.1"),
            (("gpt2-tiny", "--slots", "0"), "--slots must be at least 1"),
            (("gpt2-tiny", "--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        ):
            with pytest.raises(SystemExit) as ended:
                main(["serve", *args])
            output = capsys.readouterr().err
            assert ended.value.code == 2
            assert len(output.strip().splitlines()) == 1 and re.search(said, output)


def test_an_address_that_others_reach_is_said_to_be_one(parrot):
    service = Service(parrot, None)
    assert "WARNING" not in greeting(service, "127.0.0.1", 1, None)
    assert "other machines, without a key" in greeting(service, "0.0.0.0", 1, None)
    assert "without a key" not in greeting(service, "0.0.0.0", 1, "s3cret")
    assert "s3cret" not in greeting(service, "0.0.0.0", 1, "s3cret")


def test_marks_of_a_template_are_special_tokens_in_raw_text_only(url, speaker):
    text = "<|endoftext|>" + PROMPT

    def tokens_read(**options) -> int:
        body = {"model": "llama3", "prompt": text, "stream": False, "options": GREEDY}
        return requests.post(f"{url}/api/generate", json=body | options).json()["prompt_eval_count"]

    assert tokens_read(raw=True) == 1 + len(speaker.tokenizer.encode_ordinary(PROMPT))
    assert tokens_read() == len(speaker.tokenizer.encode_ordinary(text))
