"""Have a language model judge the responses in a file, each from 0 to 100 (section 7.8).

Examples:
    python ollama_evaluate.py --file_path runs/.../instruction-data-with-response.json
    python ollama_evaluate.py --file_path responses.json --model phi3 --url http://gpu-box:11434
    python ollama_evaluate.py --file_path responses.json --api openai --model gpt-4o-mini \\
        --url https://api.openai.com        # the key is read from OPENAI_API_KEY
    python ollama_evaluate.py --file_path responses.json --out scores.json   # after Ctrl-C, the
                                             # same command goes on where it was
    python ollama_evaluate.py --file_path responses.json --api rules   # no server: see below
    python ollama_evaluate.py --file_path responses.json --api rouge   # likewise

With ``--api rules`` no model judges: a program compares the answers that it can check. With
``--api rouge`` the package rouge-score compares the words with the reference's. For Ollama, start
the app or run `ollama serve`, then `ollama pull llama3` (4.7 GB, needs 16 GB of memory). A very
small model answers too, but its scores mean nothing.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.ch07 import (
    JudgeError,
    generate_model_scores,
    judge_responses,
    load_entries,
    query_model,
    query_openai,
    rouge_l,
    score_verifiable,
    summarize_judgements,
)
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.judge import OLLAMA_URL, OPENAI_URL, check_if_running

__all__ = ["check_if_running", "generate_model_scores", "main", "query_model"]


def main(
    file_path: str | Path,
    *,
    api: str = "ollama",
    model: str = "llama3",
    url: str | None = None,
    json_key: str = "model_response",
    timeout: float = 300.0,
    retries: int = 2,
    limit: int | None = None,
    concurrency: int = 4,
    out: str | Path | None = None,
) -> dict:
    """Print and return a summary; with ``out``, write it and all of the judge's answers as JSON.

    Until the run is complete, a file beside ``out`` keeps the answers that are there, and another
    run with the same arguments asks for the others only.
    """
    for name, value in (("limit", limit), ("concurrency", concurrency)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_output(out)
    data = load_entries(file_path)[:limit]
    if api in ("rules", "rouge"):
        require_responses(data, json_key)
        score = score_by_rules if api == "rules" else score_by_rouge
        summary = score(data, json_key)
        write_summary(out, summary)
        return summary
    options = {"model": model, "timeout": timeout, "retries": retries}
    options["url"] = full_url(url, OLLAMA_URL if api == "ollama" else OPENAI_URL)
    if api == "ollama":
        ask = partial(query_model, **options)
    else:
        ask = partial(query_openai, api_key=os.environ.get("OPENAI_API_KEY"), **options)
    judge = f"{api} {model} {options['url']}\n"
    kept = answers_file(out)
    try:
        judgements = judge_responses(data, json_key, ask, kept, concurrency, judge)
    except (KeyboardInterrupt, JudgeError):
        if kept and kept.is_file():
            print(f"What has been judged is in {kept}: the same command goes on from there.")
        raise
    about = {"judge": model, "file": Path(file_path).name}
    summary = {**about, **summarize_judgements(judgements)}
    num_scores = summary["scored"] + summary["empty"]
    print(f"Number of scores: {num_scores} of {len(data)}")
    if num_scores:
        print(f"Average score: {summary['mean']:.2f}")
    if num_scores < len(data):
        print(
            f"Without a score: judge's answers without a clear number: {summary['unparsable']}; "
            f"failed requests: {summary['failed']}. With all responses, the average lies between "
            f"{summary['lowest_mean']:.2f} and {summary['highest_mean']:.2f}."
        )
    write_judgements(out, summary, judgements)
    if kept and not summary["failed"]:
        kept.unlink(missing_ok=True)  # all of it is in out
    return summary


def answers_file(out: str | Path | None) -> Path | None:
    """Where the judge's answers are kept while a run is under way."""
    return Path(out).with_name(f"{Path(out).stem}-answers.jsonl") if out else None


def check_output(out: str | Path | None) -> None:
    """Raise ``ValueError`` before any judging if the summary cannot be written."""
    if out == "" or (out and Path(out).is_dir()):
        raise ValueError(f"--out {str(out)!r} is no name of a file: give one, scores.json say")
    if out:
        writable_folder(Path(out).parent)


def write_judgements(out: str | Path | None, summary: dict, judgements: list) -> None:
    answers = [vars(judgement) for judgement in judgements]
    write_summary(out, summary | {"judgements": answers})


def write_summary(out: str | Path | None, summary: dict) -> None:
    if out:
        with atomic_write(out) as temporary:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8")


def full_url(url: str | None, default: str) -> str:
    """A URL whose path is the API's, if only a server is given.

    >>> full_url("http://gpu-box:11434/", "http://localhost:11434/api/chat")
    'http://gpu-box:11434/api/chat'
    """
    if url is None:
        return default
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"the URL must begin with http:// or https://, got {url!r}")
    return url.rstrip("/") + urlsplit(default).path if urlsplit(url).path in ("", "/") else url


def require_responses(data: list[dict], json_key: str) -> None:
    for i, entry in enumerate(data):
        if not isinstance(entry.get(json_key), str):
            raise ValueError(f"entry {i} has no text under the key {json_key!r}")


def score_by_rules(data: list[dict], json_key: str) -> dict:
    counts = score_verifiable(data, [entry[json_key] for entry in data])
    print(
        f"A program can check {counts['verifiable']} of {counts['entries']} answers; "
        f"{counts['correct']} of them are right."
    )
    return counts


def score_by_rouge(data: list[dict], json_key: str) -> dict:
    scores = [rouge_l(entry[json_key], entry["output"]) for entry in data]
    mean = sum(scores) / len(scores)
    print(f"Mean ROUGE-L (F measure) of {len(scores)} responses: {mean:.3f}")
    return {"entries": len(scores), "mean_rouge_l": mean}


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file_path", "--file-path", required=True, help="JSON entries with a response each"
    )
    parser.add_argument("--api", choices=("ollama", "openai", "rules", "rouge"), default="ollama")
    parser.add_argument("--model", default="llama3", help="the judge (default: llama3)")
    parser.add_argument("--url", help=f"server, or whole URL (default: {OLLAMA_URL})")
    parser.add_argument("--json-key", default="model_response", help="default: model_response")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for an answer (default: 300)"
    )
    parser.add_argument("--retries", type=int, default=2, help="after an error (default: 2)")
    parser.add_argument("--limit", type=int, help="only so many entries, to try it out")
    parser.add_argument(
        "--concurrency", type=int, default=4, help="questions at a time (default: 4)"
    )
    parser.add_argument("--out", help="JSON file for the summary and all answers of the judge")
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        try:
            main(**vars(args))
        except (JudgeError, ImportError) as error:
            raise ValueError(str(error)) from None
