"""The client for many questions: faults of a server, budgets, and runs that are stopped or killed.

The server speaks Ollama's protocol and OpenAI's on loopback, and does what its script says.
"""

import contextlib
import email.utils
import http.server
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial

import pytest

from llms_from_scratch.llm_client import (
    Budget,
    BudgetSpentError,
    JudgeError,
    JudgeUnavailableError,
    ask_all,
    query_model,
    query_openai,
    read_answers,
)

PROMPTS = [f"question {number}" for number in range(200)]


class Handler(http.server.BaseHTTPRequestHandler):
    """Repeats the question as the answer, unless the server's script has a fault left."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(request["messages"][0]["content"])
            self.server.times.append(time.monotonic())
            fault, headers, body = self.server.faults.pop(0) if self.server.faults else (0, {}, b"")
        time.sleep(self.server.delay)
        with contextlib.suppress(OSError):
            self.reply(fault, headers, body, request["messages"][0]["content"])

    def reply(self, fault, headers, body, question):
        message = {"role": "assistant", "content": f"answer to {question}"}
        if fault in (0, "cut"):
            whole = {"message": message, "done": True, "prompt_eval_count": 3, "eval_count": 4}
            whole["choices"] = [{"message": message}]  # both protocols in one
            whole["usage"] = {"total_tokens": 7}
            body = json.dumps(whole).encode()
        if fault == "slow":
            time.sleep(1)
        self.send_response(fault if isinstance(fault, int) and fault else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.times, server.faults, server.delay = [], [], [], 0.0
    server.lock, server.daemon_threads = threading.Lock(), True
    server.url = f"http://127.0.0.1:{server.server_port}/api/chat"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=[query_model, query_openai], ids=["ollama", "openai"])
def ask(request, server):
    options = {"model": "any", "url": server.url, "timeout": 5, "pause": 0.01}
    return partial(request.param, **options)


def answers_to(prompts) -> list[str]:
    return [f"answer to {prompt}" for prompt in prompts]


FAULTS = {
    "429": (429, {}, b""),
    "429 with seconds": (429, {"Retry-After": "0.3"}, b""),
    "500": (500, {}, b"oh"),
    "503 with a date": (503, {"Retry-After": email.utils.formatdate(0, usegmt=True)}, b""),
    "cut": ("cut", {}, b""),
    "no JSON": ("body", {}, b'{"message": '),
    "empty": ("body", {}, b""),
    "slow": ("slow", {}, b""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_mended_by_another_try(server, ask, name):
    server.faults = [FAULTS[name]]
    timeout = 0.5 if name == "slow" else 5
    assert ask("why?", timeout=timeout, retries=1) == "answer to why?"
    assert server.asked == ["why?"] * 2
    server.faults = [FAULTS[name]] * 2
    with pytest.raises(JudgeError) as caught:
        ask("why?", timeout=timeout, retries=1)
    assert not isinstance(caught.value, JudgeUnavailableError)
    assert len(server.asked) == 4


def test_a_server_that_says_when_is_asked_then_and_else_after_growing_pauses(server, ask):
    server.faults = [FAULTS["429 with seconds"], FAULTS["429"], FAULTS["500"]]
    ask("why?", retries=3, pause=0.1)
    pauses = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert pauses[0] >= 0.3 and pauses[1] >= 0.2 and pauses[2] >= 0.4


def test_a_wait_longer_than_the_timeout_is_said_instead_of_waited(server, ask):
    server.faults = [(429, {"Retry-After": "3600"}, b"")]
    with pytest.raises(JudgeError, match="429.*wants to be asked again in 3600 seconds"):
        ask("why?", timeout=2)
    assert len(server.asked) == 1


def test_what_the_question_is_at_fault_for_is_not_tried_again(server, ask):
    server.faults = [(400, {}, b"too long")]
    with pytest.raises(JudgeError, match="HTTP status 400: too long"):
        ask("why?", retries=3)
    assert len(server.asked) == 1


def test_a_key_that_the_server_repeats_is_in_no_message(server):
    server.faults = [(400, {}, b"what is Bearer sk-secret for?")]
    with pytest.raises(JudgeError) as caught:
        query_openai("why?", "any", server.url, api_key="sk-secret")
    assert "sk-secret" not in str(caught.value) and "***" in str(caught.value)


# --- many questions


def test_answers_are_in_the_order_of_the_prompts_and_asked_for_at_a_time(server, ask, tmp_path):
    server.delay = 0.05
    started = time.monotonic()
    found = ask_all(PROMPTS[:40], ask, tmp_path / "a.jsonl", workers=8, progress=False)
    assert time.monotonic() - started < 40 * 0.05  # one after the other takes that long
    assert found == answers_to(PROMPTS[:40])
    assert ask_all(PROMPTS[:40], ask, tmp_path / "a.jsonl", progress=False) == found
    assert sorted(server.asked) == sorted(PROMPTS[:40])  # nothing twice
    assert ask_all([], ask, tmp_path / "none.jsonl", progress=False) == []


def test_an_error_concerns_one_prompt_and_is_asked_again_next_time(server, ask, tmp_path):
    server.faults = [(400, {}, b"")]
    path = tmp_path / "a.jsonl"
    found = ask_all(PROMPTS[:5], ask, path, workers=1, progress=False)
    assert isinstance(found[0], JudgeError) and found[1:] == answers_to(PROMPTS[1:5])
    assert ask_all(PROMPTS[:5], ask, path, progress=False) == answers_to(PROMPTS[:5])
    assert len(server.asked) == 6


def test_calls_and_tokens_stay_within_a_budget_and_nothing_is_lost(server, ask, tmp_path):
    path = tmp_path / "a.jsonl"
    budget = Budget(max_calls=7)
    with pytest.raises(BudgetSpentError, match="budget of 7 calls is spent: raise it, and resume"):
        ask_all(PROMPTS[:20], partial(ask, budget=budget), path, workers=3, progress=False)
    assert budget.calls == len(server.asked) == 7
    assert len(read_answers(PROMPTS[:20], path)) == 7
    budget = Budget(max_tokens=20)
    with pytest.raises(BudgetSpentError, match=r"20 tokens is spent \(21 were used\)"):
        ask_all(PROMPTS[:20], partial(ask, budget=budget), path, workers=1, progress=False)
    assert len(read_answers(PROMPTS[:20], path)) == 10
    assert ask_all(PROMPTS[:20], ask, path, progress=False) == answers_to(PROMPTS[:20])
    assert Counter(server.asked) == Counter(PROMPTS[:20])


def test_a_failed_try_is_a_call_of_the_budget(server, ask):
    server.faults = [FAULTS["500"]] * 5
    with pytest.raises(BudgetSpentError):
        ask("why?", retries=4, budget=Budget(max_calls=2))
    assert len(server.asked) == 2


def test_an_absent_server_ends_the_run():
    def ask(prompt):
        raise JudgeUnavailableError("no server")

    with pytest.raises(JudgeUnavailableError, match="no server"):
        ask_all(PROMPTS, ask, progress=False)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        ask_all(PROMPTS, ask, workers=0)


def test_a_file_of_other_prompts_or_of_something_else_is_not_touched(tmp_path):
    path = tmp_path / "a.jsonl"
    ask_all(PROMPTS[:3], str.upper, path, progress=False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="answers to other prompts .line 1.: remove it"):
        ask_all(["x", "y", "z"], str.upper, path, progress=False)
    with pytest.raises(ValueError, match="answers to other prompts"):
        ask_all(PROMPTS[:2], str.upper, path, progress=False)
    assert path.read_bytes() == before
    path.write_bytes(b"not ours\n" + before)
    with pytest.raises(ValueError, match="line 1 is no answer that was kept: b'not ours'"):
        ask_all(PROMPTS[:3], str.upper, path, progress=False)


@pytest.mark.parametrize("kept", range(1, 8))
def test_a_half_line_at_the_end_is_removed_and_asked_again(tmp_path, kept):
    path = tmp_path / "a.jsonl"
    ask_all(PROMPTS[:2], str.upper, path, workers=1, progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: -kept * 13])
    assert ask_all(PROMPTS[:2], str.upper, path, workers=1, progress=False) == [
        prompt.upper() for prompt in PROMPTS[:2]
    ]
    assert path.read_bytes() == whole


# --- stopped and killed

RUN = """
import sys
from functools import partial
from llms_from_scratch.llm_client import ask_all, query_model

prompts = [f"question {number}" for number in range(200)]
ask = partial(query_model, url=sys.argv[1], timeout=20)
try:
    ask_all(prompts, ask, sys.argv[2], workers=4, progress=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(server, path):
    return subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)])


def count_lines(path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_run_that_is_killed_at_random_moments_has_each_entry_exactly_once(server, tmp_path):
    path, rng, kills = tmp_path / "a.jsonl", random.Random(5), 0
    server.delay = 0.01
    while True:
        before = count_lines(path)
        process = start(server, path)
        while process.poll() is None and count_lines(path) == before:
            time.sleep(0.005)
        try:
            process.wait(timeout=rng.uniform(0, 0.12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        break
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert kills >= 2
    assert sorted(line["number"] for line in lines) == list(range(200))
    assert all(line["answer"] == f"answer to question {line['number']}" for line in lines)
    again = Counter(server.asked)
    assert set(again) == set(PROMPTS)
    assert again.total() - 200 <= 4 * kills + 4  # at most what was under way, one per worker


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on Unix")
def test_ctrl_c_ends_a_run_at_once_and_keeps_what_was_answered(server, tmp_path):
    path = tmp_path / "a.jsonl"
    server.delay = 0.02
    process = start(server, path)
    while count_lines(path) < 5:
        time.sleep(0.01)
    server.delay = 15.0  # the answers under way are not waited for
    time.sleep(0.1)
    stopped = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - stopped < 5
    kept = read_answers(PROMPTS, path)
    assert len(kept) >= 5 and all(kept[n] == f"answer to question {n}" for n in kept)
    assert count_lines(path) == len(kept)
