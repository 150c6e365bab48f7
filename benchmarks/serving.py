"""Load the server with many streams at once, and compare with one stream.

    python benchmarks/serving.py smollm2-135m-instruct --streams 64 --seconds 120

Prints tokens per second, seconds to the first token, the server's memory over time, and whether
each greedy text is the one that a single request gets. Exits with 1 if a text was lost or mixed up.
Where a text differs, the model is asked how close its two best tokens were: rounding decides
between tokens that are equally good, and differs between batches of different sizes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import psutil
import requests
import torch

from llms_from_scratch.serving.speaking import load_speaker

SUBJECTS = "a river, the moon, bread, a clock, winter, an old map, a lighthouse, rain".split(", ")
CLOSE = 1e-3  # logits that differ by less are equally good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=64, help="at a time (default: 64)")
    parser.add_argument("--slots", type=int, default=64, help="of the server (default: 64)")
    parser.add_argument("--seconds", type=float, default=120, help="of load (default: 120)")
    parser.add_argument("--new-tokens", type=int, default=48, help="of each text (default: 48)")
    args = parser.parse_args()

    process, url = start_server(args.model, args.slots, args.streams)
    try:
        questions = [f"Write {n} words about {what}." for n in (5, 20, 60) for what in SUBJECTS]
        name = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
        load = Load(url, name, args.new_tokens)
        print("one stream ...", flush=True)
        alone = {question: load.ask(question) for question in questions}
        rate = statistics.median(stream.rate for stream in alone.values())
        print(f"  {rate:.1f} tokens/s (median of {len(questions)} requests)")
        print(f"{args.streams} streams for {args.seconds:.0f} s ...", flush=True)
        memory = load.run(questions, args.streams, args.seconds, psutil.Process(process.pid))
        refused = count_refused(load, 3 * args.streams)
    finally:
        process.send_signal(2)
        process.wait(timeout=30)
    return report(args, load, alone, rate, memory, refused)


def start_server(model: str, slots: int, queue_size: int) -> tuple[subprocess.Popen, str]:
    """The server in a process of its own, and its address."""
    command = [sys.executable, "-m", "llms_from_scratch.app.cli", "serve", model, "--port", "0"]
    command += ["--slots", str(slots), "--queue", str(queue_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    url = ""
    for line in process.stdout:
        if "/v1" in line:
            url = line.split()[-1].removesuffix("/v1")
        if line.startswith("Ctrl-C"):
            return process, url
    raise SystemExit("the server did not start; see above")


class Stream:
    """One answer: its text, the seconds until its first token and its last."""

    def __init__(self, question: str):
        self.question, self.text, self.tokens = question, "", 0
        self.started = time.perf_counter()
        self.first = self.last = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.last


class Load:
    """Asks the server, from as many threads as there are streams."""

    def __init__(self, url: str, model: str, new_tokens: int):
        self.url, self.model, self.new_tokens = url, model, new_tokens
        self.streams: list[Stream] = []
        self.errors: list[str] = []

    def ask(self, question: str) -> Stream:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        body["options"] = {"temperature": 0, "num_predict": self.new_tokens}
        stream = Stream(question)
        with requests.post(f"{self.url}/api/chat", json=body, stream=True, timeout=600) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                part = json.loads(line)
                stream.first = stream.first or time.perf_counter() - stream.started
                stream.text += part["message"]["content"]
                stream.tokens = part.get("eval_count", 0)
        stream.last = time.perf_counter() - stream.started
        return stream

    def run(self, questions, streams: int, seconds: float, server: psutil.Process) -> list[float]:
        """Ask for so many seconds, each thread again and again; the server's MB over time."""
        end = time.perf_counter() + seconds
        self.began = time.perf_counter()

        def keep_asking(number: int) -> None:
            turn = number
            while time.perf_counter() < end:
                try:
                    self.streams.append(self.ask(questions[turn % len(questions)]))
                except (requests.RequestException, KeyError, ValueError) as error:
                    self.errors.append(repr(error))
                turn += streams + 1  # not the same question in all threads

        threads = [threading.Thread(target=keep_asking, args=(i,)) for i in range(streams)]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            memory.append(server.memory_info().rss / 1e6)
            time.sleep(1)
        self.took = time.perf_counter() - self.began
        return memory


def count_refused(load: Load, requests_at_once: int) -> dict[int, int]:
    """How many of more requests than slots and queue take get which HTTP status."""
    statuses: list[int] = []

    def ask() -> None:
        body = {"model": load.model, "prompt": "Hello", "stream": False}
        body["options"] = {"num_predict": 20}
        response = requests.post(f"{load.url}/api/generate", json=body, timeout=600)
        statuses.append(response.status_code)

    threads = [threading.Thread(target=ask) for _ in range(requests_at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def report(args, load: Load, alone, rate: float, memory: list[float], refused) -> int:
    tokens = sum(stream.tokens for stream in load.streams)
    together = tokens / load.took
    first = sorted(stream.first for stream in load.streams)
    p50, p95 = (first[int(len(first) * share)] for share in (0.5, 0.95))
    print(f"  {together:.1f} tokens/s, {together / rate:.2f} times one stream's")
    print(f"  first token after {p50:.2f} s (median), {p95:.2f} s (95 %), {p95 / p50:.2f} times")
    quarter = len(memory) // 4
    grown = statistics.median(memory[-quarter:]) / statistics.median(memory[quarter : 2 * quarter])
    print(f"  memory at most {max(memory):.0f} MB; last quarter / second quarter {grown:.3f}")
    print(f"  {3 * args.streams} requests at once: {refused}")
    different = {}
    for stream in load.streams:
        if stream.text != alone[stream.question].text:
            different.setdefault((stream.question, stream.text), stream)
    count = sum(stream.text != alone[stream.question].text for stream in load.streams)
    print(f"  {len(load.streams)} texts, {len(load.errors)} errors, {count} unlike those alone")
    speaker = load_speaker(args.model) if different else None
    gaps = [gap(speaker, s.question, alone[s.question].text, s.text) for s in different.values()]
    if gaps:
        print(f"  logits at the first difference are apart by at most {max(gaps):.2g}")
    return 1 if load.errors or max(gaps, default=0) > CLOSE else 0


@torch.inference_mode()
def gap(speaker, question: str, one: str, other: str) -> float:
    """How far apart the logits of two texts' tokens are, where these first differ."""
    one_ids, other_ids = (speaker.tokenizer.encode_ordinary(text) for text in (one, other))
    pairs = zip(one_ids, other_ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return float("inf")  # one is a part of the other: a text was cut
    prompt = speaker.encode_messages([{"role": "user", "content": question}])
    logits = speaker.model(torch.tensor([prompt + one_ids[:place]]))[0, -1]
    return (logits[one_ids[place]] - logits[other_ids[place]]).abs().item()


if __name__ == "__main__":
    sys.exit(main())
