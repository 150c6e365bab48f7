"""Judging answers: rules, scores in a judge's words, and the client against a server on loopback.

The server speaks Ollama's protocol and OpenAI's, and goes wrong in the ways real ones do.
"""

import contextlib
import http.server
import json
import re
import runpy
import socket
import sys
import threading
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from llms_from_scratch.ch07 import (
    Judgement,
    generate_model_scores,
    judge_prompt,
    judge_responses,
    load_instructions,
    split_data,
    summarize_judgements,
)
from llms_from_scratch.judge import (
    JudgeError,
    JudgeUnavailableError,
    answer_check,
    check_if_running,
    contains_phrase,
    is_correct,
    normalize,
    parse_score,
    query_model,
    query_openai,
    rouge_l,
    score_verifiable,
    token_f1,
)

ENTRY = {"instruction": "What is the opposite of 'hot'?", "input": "", "output": "Cold."}
EXACT = {"match": "exact", "any_of": ["The opposite is 'cold'.", "cold"]}
CONTAINS = {"match": "contains", "any_of": ["cold"]}

# --- rules


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Paris", "paris"),
        ("  PARIS.\n", "paris"),
        ("'Paris'", "paris"),
        ("“Paris”!", "paris"),
        ("Paris,\n  in France", "paris, in france"),
        ("1,234,567 meters", "1234567 meters"),
        ("1,2,3", "1,2,3"),
        ("-34", "-34"),
        ("−34", "-34"),
        ("50%", "50%"),
        ("?", "?"),
        ("", ""),
        ("Straße", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("CAFE\u0301 \u212b", "caf\u00e9 \u00e5"),
    ],
)
def test_normalize(text, wanted):
    assert normalize(text) == wanted


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_normalizing_twice_changes_nothing_and_case_and_margins_do_not_count(text):
    once = normalize(text)
    assert normalize(once) == once
    check = {"match": "exact", "any_of": [text]}
    assert is_correct(text, check) and is_correct(f"  {text}\n", check)


@given(st.text(max_size=30) | st.text("aeουι\u0301\u0308\u0345\u03b0é\u1fb7İ .'", max_size=8))
def test_one_character_or_two_make_no_difference(text):
    written = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert normalize(written[0]) == normalize(written[1]) == normalize(normalize(text))


@pytest.mark.parametrize(
    ("response", "exact", "contains"),
    [
        ("cold", True, True),
        ("Cold.", True, True),
        ("The opposite is 'cold'", True, True),
        ("It is cold, I think.", False, True),
        ("It is 'COLD'.", False, True),
        ("scolding", False, False),
        ("coldness", False, False),
        ("", False, False),
        ("hot", False, False),
    ],
)
def test_is_correct(response, exact, contains):
    assert is_correct(response, EXACT) is exact
    assert is_correct(response, CONTAINS) is contains


def test_numbers_count_as_a_whole():
    for text, number, found in (
        ("It is 3,000 m", "3000", True),
        ("It is 3000.", "3000", True),
        ("It is 13000 m", "3000", False),
        ("3.5 km", "3", False),
        ("13.5 km", "3.5", False),
        ("-5 degrees", "5", False),
        ("It is -5.", "-5", True),
        ("3000m", "3000", False),
        ("The mark is '?'.", "?", True),
    ):
        assert contains_phrase(text, number) is found, (text, number)


def test_an_unknown_kind_of_check_is_refused():
    with pytest.raises(ValueError, match="must be 'exact' or 'contains', got 'near'"):
        is_correct("a", {"match": "near", "any_of": ["a"]})


def make(instruction, output, text=""):
    return {"instruction": instruction, "input": text, "output": output}


@pytest.mark.parametrize(
    ("entry", "match", "answer"),
    [
        (ENTRY, "exact", "Cold."),
        (make("Classify the text.", "Opinion", "Chocolate is best."), "exact", "Opinion"),
        (
            make("What is the opposite of 'wet'?", "The opposite of 'wet' is 'dry'."),
            "contains",
            "dry",
        ),
        (
            make("What is the formula of water?", "The formula of water is H2O."),
            "contains",
            "h2o",
        ),
        (
            make("Convert 3 kilometers to meters.", "3 kilometers is 3000 meters."),
            "contains",
            "3000",
        ),
        (
            make("How cold is it in degrees?", "It is about -34 degrees Celsius."),
            "contains",
            "-34",
        ),
        (ENTRY | {"check": CONTAINS}, "contains", "cold"),
    ],
)
def test_what_a_program_can_check(entry, match, answer):
    assert answer_check(entry) == {"match": match, "any_of": [answer]}
    assert is_correct(entry["output"], answer_check(entry))


@pytest.mark.parametrize(
    "entry",
    [
        make("Give an example of a fruit.", "Apple."),
        make("Provide a synonym for 'big'.", "Large"),
        make("Generate a verb.", "Laughed."),
        make("Rewrite the sentence.", "The lecture is clear.", "The lecture was good."),
        make("Use a shorter sentence.", "He runs 5 miles every day.", "He is running."),
        make("What is a sonnet?", "A sonnet is a poem of 14 lines with 5 feet in each of them."),
        make("Who wrote it?", ""),
        make("What is fire?", "Fire is hot and bright and it burns what is near."),
    ],
)
def test_what_a_program_cannot_check(entry):
    assert answer_check(entry) is None


@pytest.mark.real_data
def test_a_third_of_the_books_test_set_can_be_checked_and_its_answers_pass():
    _, data = load_instructions()
    test_data = split_data(data)[2]
    outputs = [entry["output"] for entry in test_data]
    assert score_verifiable(test_data, outputs) == {
        "entries": 110,
        "verifiable": 41,
        "correct": 41,
    }
    swapped = outputs[1:] + outputs[:1]
    assert score_verifiable(test_data, swapped)["correct"] == 0
    assert all(
        is_correct(entry["output"], answer_check(entry)) for entry in data if answer_check(entry)
    )


def test_each_check_of_the_bundled_instructions_accepts_its_output(monkeypatch, tmp_path):
    monkeypatch.delenv("LLMS_FROM_SCRATCH_MIRROR", raising=False)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path))
    _, data = load_instructions()
    counts = score_verifiable(data, [entry["output"] for entry in data])
    assert counts["correct"] == counts["verifiable"] > 500


def test_token_f1_is_the_harmonic_mean_of_shared_words():
    assert token_f1("a b", "a b") == token_f1("", "") == 1.0
    assert token_f1("a", "b") == token_f1("", "b") == 0.0
    precision, recall = 2 / 3, 2 / 4  # shared: "a" once, "b" once
    assert token_f1("a a b", "a b c d") == pytest.approx(
        2 * precision * recall / (precision + recall)
    )


@given(*(st.text(alphabet="ab cD1.'!?-\n", max_size=30) for _ in range(2)))
def test_token_f1_is_the_f_measure_of_rouge_1(response, reference):
    scorer = rouge_scorer.RougeScorer(["rouge1"])
    theirs = scorer.score(reference, response)["rouge1"].fmeasure
    both_empty = not re.search(r"\w", response + reference)  # we call that a perfect answer
    assert token_f1(response, reference) == pytest.approx(1.0 if both_empty else theirs)


def test_rouge_l_counts_shared_words_in_order_and_names_the_package_it_lacks(monkeypatch):
    # "the cat on mat" is the longest common sequence: 4 of 5 words, and 4 of 6
    measured = rouge_l("The cat, on a mat!", "the cat sat on the mat")
    precision, recall = 4 / 5, 4 / 6
    assert measured == pytest.approx(2 * precision * recall / (precision + recall))
    shuffled = ("mat the on cat", "the cat on mat")
    assert rouge_l(*shuffled) < token_f1(*shuffled) == 1
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match="pip install rouge-score"):
        rouge_l("a", "a")


# --- what a judge's answer says: 60 replies and their documented outcome

REPLIES = [
    *((str(n), n) for n in (0, 1, 40, 85, 99, 100)),
    *((f" {n}\n", n) for n in (7, 95)),
    *((f"{n}.", n) for n in (7, 95)),
    *((f"**{n}**", n) for n in (7, 95)),
    *((f"{n}/100", n) for n in (0, 85, 100)),
    *((f"{n} / 100", n) for n in (0, 85)),
    *((f"{n} out of 100", n) for n in (0, 85)),
    *((f"{n}%", n) for n in (0, 85)),
    *((f"Score: {n}", n) for n in (0, 85)),
    *((f"Score: {n}/100", n) for n in (0, 85)),
    *((f"score = {n}", n) for n in (0, 85)),
    *((f"**Score:** {n}", n) for n in (0, 85)),
    *((f"The score is {n}.", n) for n in (0, 85)),
    *((f"Total rating: {n}", n) for n in (0, 85)),
    *((f"I would give the response {n} points.", n) for n in (0, 85)),
    ("On a scale of 0 to 100, I rate it 85.", 85),
    ("On a scale from 0-100: 85", 85),
    ("Score: 85. It has 2 errors and 3 good points.", 85),
    ("85, I repeat, 85", 85),
    ("85.0", 85),
    ("84.6", 85),
    *((words, None) for words in ("eighty-five", "A good response.", "N/A", "?")),
    *((words, None) for words in ("", " \n", "null")),
    *((words, None) for words in ("-5", "101", "850", "1e3", "85th")),
    *((words, None) for words in ("8/10", "4 out of 5", "4.5/5", "Score: 8/10")),
    *((words, None) for words in ("Between 70 and 80", "60? 70?", "Score: 60. Or score: 70.")),
    *(
        (f"Score: 8 {words}", None)
        for words in ("(out of 10)", "on a scale of 10", "of 10", "/ 10")
    ),
    *(
        (f"Score: 8 {words}", None)
        for words in ("out of ten", "(1-10)", "[0 to 10]", "points of 10")
    ),
    *((f"Score: 8 {words}", None) for words in ("on a scale from 1 to 10", "on a 10-point scale")),
    *((f"Score: 8 {words}", None) for words in ("on a scale of 1-10", "out of a possible 10")),
    *(
        (f"Score: 8 {words}", None)
        for words in ("on a ten-point scale", "on a 1-10 scale", "(/10)")
    ),
    *((words, None) for words in ("Rating: 4 of 5", "4 stars out of 5", "4 stars", "Rating: 4 ★")),
    *(
        (words, None)
        for words in ("Scale: 10. Score: 8", "**8** out of **10**", "Score: **8** / 10")
    ),
    *((f"Score: 85 {words}", 85) for words in ("(out of 100)", "of 100", "on a scale of 100")),
    *(
        (f"Score: 85 {words}", 85)
        for words in ("on a scale from 1 to 100", "out of a possible 100")
    ),
    *((f"Score: 85 {words}", 85) for words in ("on a 100-point scale", "(0–100)", "points of 100")),
    ("Score: 85. It has one of the two facts.", 85),
    ("Score: 85. It is the best of 3 answers.", 85),
    *((page, None) for page in ("<html><h1>50</h1></html>", "<!DOCTYPE html>\n<p>85</p>")),
]


@pytest.mark.parametrize(("answer", "score"), REPLIES)
def test_parse_score(answer, score):
    assert parse_score(answer) == score


@given(st.text(max_size=40))
def test_any_text_gives_a_score_from_0_to_100_or_none(answer):
    assert parse_score(answer) in {None, *range(101)}


# --- a server


def lines_of(text, done=True):
    """A stream as Ollama sends it: a few characters at a time, and a last line with ``done``."""
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    lines = [
        {"model": "llama3", "message": {"role": "assistant", "content": piece}, "done": False}
        for piece in pieces
    ]
    if done:
        lines.append({"message": {"role": "assistant", "content": ""}, "done": True})
    return [json.dumps(line).encode() + b"\n" for line in lines]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's ``script`` says: a function of the request's number and content."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(size))
        self.server.requests.append((self.path, dict(self.headers), request))
        reply = self.server.script(len(self.server.requests) - 1, request)
        with contextlib.suppress(OSError):
            self.answer(*reply)

    def answer(self, kind, content):
        self.close_connection = True
        if kind == "status":
            body = json.dumps({"error": "as asked for"}).encode()
            self.send_response(content)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if kind == "cut at once":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in content:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
            if kind == "slow":
                time.sleep(0.15)
        if kind == "silent":
            time.sleep(1)
        if kind != "cut":
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.script = [], lambda i, request: ("stream", lines_of("85"))
    server.url = f"http://127.0.0.1:{server.server_port}/api/chat"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asker(server, **options):
    options = {"timeout": 5, "retries": 0, "pause": 0} | options
    return lambda prompt: query_model(prompt, url=server.url, **options)


def test_the_request_has_its_options_where_ollama_reads_them(server):
    text = "Grüße, 5 €\nNew line \U0001f600"
    server.script = lambda i, request: ("stream", lines_of(text))
    assert query_model("How?", "phi3", server.url) == text
    path, headers, request = server.requests[0]
    assert path == "/api/chat"
    assert request == {
        "model": "phi3",
        "messages": [{"role": "user", "content": "How?"}],
        "options": {"seed": 123, "temperature": 0, "num_ctx": 2048},
    }


def test_an_answer_in_one_piece_and_blank_lines_are_understood(server):
    server.script = lambda i, request: ("stream", [b"\n", *lines_of("85"), b"ignored\n"])
    assert asker(server)("?") == "85"


OUTCOMES = {
    # what the server does: (reply, what the client says)
    "HTTP 500": (("status", 500), "HTTP status 500"),
    "HTTP 400": (("status", 400), "HTTP status 400: .*as asked for"),
    "HTTP 503": (("status", 503), "HTTP status 503"),
    "HTTP 429": (("status", 429), "HTTP status 429"),
    "cut at once": (("cut at once", None), "cut"),
    "cut stream": (("cut", lines_of("85", done=False)), "cut"),
    "stream without an end": (("stream", lines_of("85", done=False)), "cut"),
    "HTML": (("stream", [b"<html><body>Log in, 85</body></html>\n"]), "something else than JSON"),
    "a JSON list": (("stream", [b"[85]\n"]), "something else than JSON objects"),
    "error in the stream": (("stream", [b'{"error": "out of memory"}\n']), "out of memory"),
    "no message": (("stream", [b'{"done": true}\n']), "no message"),
    "message null": (("stream", [b'{"message": {"content": null}}\n']), "no message"),
    "silence": (("silent", []), "no whole answer in 0.3 seconds"),
    "too slow": (("slow", lines_of("85 " * 20)), "no whole answer in 0.3 seconds"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_goes_wrong_is_an_error_with_the_reason_and_is_tried_again(server, name):
    reply, message = OUTCOMES[name]
    server.script = lambda i, request: reply
    with pytest.raises(JudgeError, match=message) as caught:
        asker(server, timeout=0.3)("?")
    assert not isinstance(caught.value, JudgeUnavailableError)
    assert len(server.requests) == 1
    if name == "HTTP 400":  # the question is at fault: another try would not help
        return
    server.requests.clear()
    server.script = lambda i, request: reply if i == 0 else ("stream", lines_of("85"))
    assert asker(server, timeout=0.3, retries=1)("?") == "85"


def test_retries_end_and_their_pauses_double(server, monkeypatch):
    slept = []
    monkeypatch.setattr("llms_from_scratch.llm_client.time.sleep", slept.append)
    server.script = lambda i, request: ("status", 500)
    with pytest.raises(JudgeError, match="HTTP status 500"):
        asker(server, retries=3, pause=1.5)("?")
    assert len(server.requests) == 4 and slept == [1.5, 3.0, 6.0]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "no model 'llama3': run `ollama pull llama3`, or name another one"),
        (401, "refuses the API key"),
        (403, "refuses the API key"),
    ],
)
def test_what_no_retry_mends_is_said_at_once(server, status, message):
    server.script = lambda i, request: ("status", status)
    with pytest.raises(JudgeUnavailableError, match=message):
        asker(server, retries=3)("?")
    assert len(server.requests) == 1


def test_an_absent_server_is_named_with_the_way_to_start_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api/chat"
    with pytest.raises(JudgeUnavailableError, match=f"{url}: start the Ollama app or .*serve"):
        query_model("?", url=url)
    with pytest.raises(JudgeUnavailableError, match="no server answers at .*: start one"):
        query_openai("?", "any", url=url)
    with pytest.raises(JudgeUnavailableError, match="is no usable URL"):
        query_model("?", url="no url")


def test_openais_protocol(server):
    answer = {"choices": [{"message": {"role": "assistant", "content": "85"}}]}
    server.script = lambda i, request: ("stream", [json.dumps(answer).encode()])
    assert query_openai("How?", "a-model", server.url, api_key="secret") == "85"
    _, headers, request = server.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert request == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "How?"}],
        "seed": 123,
        "temperature": 0,
    }
    assert query_openai("How?", "a-model", server.url) == "85"
    assert "Authorization" not in server.requests[1][1]
    for content in (b"<html>", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b""):
        server.script = lambda i, request, content=content: ("stream", [content] if content else [])
        with pytest.raises(JudgeError):
            query_openai("How?", "a-model", server.url, retries=0)


# --- 100 scripted replies in one run


def test_100_scripted_replies_have_the_documented_outcome_each(server, capsys):
    usable = [reply for reply in REPLIES if reply[0].strip()]
    usable = (usable * 2)[: 100 - 5 - len(OUTCOMES)]
    script = [("stream", lines_of(answer)) for answer, _ in usable]
    wanted = [("unparsable" if score is None else "scored", score) for _, score in usable]
    script += [reply for reply, _ in OUTCOMES.values()]
    wanted += [("failed", None)] * len(OUTCOMES)
    script += [("stream", lines_of(text)) for text in ("", " ", "\n", "", "")]
    wanted += [("unparsable", None)] * 5  # the judge says nothing
    assert len(script) == 100
    data = [ENTRY | {"model_response": f"answer {i}"} for i in range(100)]
    server.script = lambda i, request: script[i]

    judgements = judge_responses(data, "model_response", asker(server, timeout=0.3))
    assert [(j.outcome, j.score) for j in judgements] == wanted
    assert len(server.requests) == 100  # each response was asked about once
    for i, (_, _, request) in enumerate(server.requests):
        assert f"`answer {i}`" in request["messages"][0]["content"]

    summary = summarize_judgements(judgements)
    counts = Counter(outcome for outcome, _ in wanted)
    assert {name: summary[name] for name in counts} == counts
    scores = [score for _, score in wanted if score is not None]
    assert summary["responses"] == 100
    assert summary["mean"] == pytest.approx(sum(scores) / len(scores))
    assert summary["lowest_mean"] == pytest.approx(sum(scores) / 100)
    assert summary["highest_mean"] == pytest.approx((sum(scores) + 100 * (100 - len(scores))) / 100)


# --- the script


@pytest.mark.parametrize("api", ["ollama", "openai"])
def test_the_script_reports_what_has_no_score_and_writes_all_answers(
    server, tmp_path, monkeypatch, capsys, api
):
    folder = Path(__file__).resolve().parent.parent / "ch07" / "01_main-chapter-code"
    main = runpy.run_path(str(folder / "ollama_evaluate.py"))["main"]
    answers = ["80", "no idea", "40", None]

    def script(i, request):
        if answers[i] is None:
            return "status", 400
        if api == "ollama":
            return "stream", lines_of(answers[i])
        message = {"choices": [{"message": {"content": answers[i]}}]}
        return "stream", [json.dumps(message).encode()]

    server.script = script
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path, out = tmp_path / "answers.json", tmp_path / "scores.json"
    path.write_text(json.dumps([ENTRY | {"model_response": "Cold."}] * 4), encoding="utf-8")
    url = server.url.removesuffix("/api/chat")
    summary = main(path, api=api, model="a-judge", url=url, out=out, concurrency=1)
    assert server.requests[0][0] == {"ollama": "/api/chat", "openai": "/v1/chat/completions"}[api]
    assert server.requests[0][1].get("Authorization") == (
        "Bearer secret" if api == "openai" else None
    )
    printed = capsys.readouterr().out
    assert "Number of scores: 2 of 4\nAverage score: 60.00\n" in printed
    assert "without a clear number: 1; failed requests: 1." in printed
    assert "the average lies between 30.00 and 80.00" in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    judgements = written.pop("judgements")
    assert written == summary and (summary["scored"], summary["failed"]) == (2, 1)
    assert [j["outcome"] for j in judgements] == ["scored", "unparsable", "scored", "failed"]
    assert judgements[1]["answer"] == "no idea"


# --- scores of a model's responses


def test_generate_model_scores_counts_what_it_leaves_out(capsys):
    answers = iter(["85", "no idea", "40"])
    data = [ENTRY | {"model_response": text} for text in ("a", "b", " ", "c")]
    scores = generate_model_scores(data, "model_response", ask=lambda prompt: next(answers))
    assert scores == [85, 0, 40]  # an empty response gets 0, and no question
    printed = capsys.readouterr().out
    assert "Entry 1, unparsable: 'no idea'" in printed
    assert "3 of 4 responses have a score." in printed
    assert generate_model_scores([], "model_response", ask=None) == []
    with pytest.raises(ValueError, match="entry 0 has no text under the key 'response'"):
        generate_model_scores(data, "response", ask=lambda prompt: "1")


def test_one_failure_concerns_one_response_but_an_absent_judge_ends_the_run():
    def ask(prompt):
        raise JudgeError("HTTP status 500")

    data = [ENTRY | {"model_response": "a"}] * 2
    assert (
        judge_responses(data, "model_response", ask)
        == [Judgement("failed", None, "HTTP status 500")] * 2
    )

    def ask_nobody(prompt):
        raise JudgeUnavailableError("no server")

    with pytest.raises(JudgeUnavailableError):
        judge_responses(data, "model_response", ask_nobody)


def test_without_a_score_there_is_no_mean():
    assert summarize_judgements([])["mean"] is None
    summary = summarize_judgements([Judgement("unparsable", None, "?")])
    assert (summary["mean"], summary["lowest_mean"], summary["highest_mean"]) == (None, 0, 100)


def test_the_judge_is_shown_task_answer_and_response_in_backticks():
    prompt = judge_prompt(ENTRY, "Warm.")
    for part in (ENTRY["instruction"] + "`", "`Cold.`", "`Warm.`"):
        assert part in prompt
    assert "0 to 100" in prompt and "integer" in prompt


def test_check_if_running_finds_a_process_by_its_name():
    pytest.importorskip("psutil")
    assert check_if_running("py")
    assert not check_if_running("no process is called like this")


class TricklingHandler(http.server.BaseHTTPRequestHandler):
    """Sends one byte now and then: of the headers, of the answer, or of an error's page."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status = b"503 Busy" if self.server.part == "error" else b"200 OK"
        head = b"HTTP/1.1 " + status + b"\r\nContent-Length: 1000\r\n"
        head += b"X-Slow: " if self.server.part == "headers" else b"\r\n"
        with contextlib.suppress(OSError):
            self.wfile.write(head)
            for _ in range(40):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("part", ["headers", "answer", "error"])
@pytest.mark.parametrize("query", [query_model, query_openai])
def test_a_server_that_trickles_gets_no_more_time_than_it_was_given(part, query):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), TricklingHandler) as trickling:
        trickling.part, trickling.daemon_threads = part, True
        threading.Thread(target=trickling.serve_forever, args=(0.02,), daemon=True).start()
        started = time.monotonic()
        url = f"http://127.0.0.1:{trickling.server_port}/"
        with pytest.raises(JudgeError, match=r"no whole answer in 0\.5 seconds"):
            query("?", "llama3", url=url, timeout=0.5, retries=0)
        assert time.monotonic() - started < 1.5
        trickling.shutdown()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), JudgeUnavailableError("it is gone")])
def test_the_script_keeps_what_has_been_judged_and_goes_on_from_there(tmp_path, capsys, stop):
    folder = Path(__file__).resolve().parent.parent / "ch07" / "01_main-chapter-code"
    main = runpy.run_path(str(folder / "ollama_evaluate.py"))["main"]
    asked, is_gone = [], [True]

    def query(prompt, **options):
        if is_gone and len(asked) == 2:
            raise stop
        asked.append(prompt)
        return "80"

    main.__globals__["query_model"] = query
    path, out = tmp_path / "answers.json", tmp_path / "new" / "scores.json"
    data = [ENTRY | {"model_response": f"Cold {number}."} for number in range(4)]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(type(stop)):
        main(path, out=out, concurrency=1)
    kept = tmp_path / "new" / "scores-answers.jsonl"
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 2 and not out.exists()
    assert "the same command goes on from there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="answers to other prompts"):
        main(path, out=out, model="another-judge")
    is_gone.clear()
    assert main(path, out=out, concurrency=3)["scored"] == 4
    assert len(asked) == 4 and len(set(asked)) == 4  # each was answered once
    judgements = json.loads(out.read_text(encoding="utf-8"))["judgements"]
    assert [judgement["score"] for judgement in judgements] == [80] * 4
    assert not kept.exists()


def test_a_failed_request_is_made_again_by_the_next_run_alone(tmp_path):
    folder = Path(__file__).resolve().parent.parent / "ch07" / "01_main-chapter-code"
    main = runpy.run_path(str(folder / "ollama_evaluate.py"))["main"]
    asked = []

    def query(prompt, **options):
        asked.append(prompt)
        if "Cold 1." in prompt and len(asked) < 4:
            raise JudgeError("HTTP status 500")
        return "80"

    main.__globals__["query_model"] = query
    path, out = tmp_path / "answers.json", tmp_path / "scores.json"
    data = [ENTRY | {"model_response": f"Cold {number}."} for number in range(3)]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert main(path, out=out)["failed"] == 1
    assert main(path, out=out)["scored"] == 3
    assert len(asked) == 4


def test_the_script_refuses_no_questions_at_a_time(tmp_path):
    folder = Path(__file__).resolve().parent.parent / "ch07" / "01_main-chapter-code"
    main = runpy.run_path(str(folder / "ollama_evaluate.py"))["main"]
    with pytest.raises(ValueError, match="concurrency must be at least 1, got 0"):
        main(tmp_path / "nowhere.json", concurrency=0)


@pytest.mark.parametrize("out", ["", "."])
def test_the_script_checks_the_place_of_its_results_before_it_judges(out, tmp_path):
    folder = Path(__file__).resolve().parent.parent / "ch07" / "01_main-chapter-code"
    main = runpy.run_path(str(folder / "ollama_evaluate.py"))["main"]
    with pytest.raises(ValueError, match="is no name of a file"):
        main(tmp_path / "nowhere.json", out=out)
