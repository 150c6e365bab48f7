"""Make the bundled stand-ins for two models' answers and for the scores that two judges give them.

    python tools/make_judge_sample.py

They let chapter 7's notebooks on judges run without a network. No model has written the answers
and no judge has given the scores: a program changes the outputs of bundled entries, and draws.
"""

import json
import random

from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data import SAMPLES

NUM_ENTRIES = 40
SHARE_RIGHT = {"model 1": 0.8, "model 2": 0.5}


def main() -> None:
    draw = random.Random(123)
    entries = load_entries(SAMPLES / "instruction-data-synthetic.json")[:NUM_ENTRIES]
    quality: dict[str, list[bool]] = {model: [] for model in SHARE_RIGHT}
    examples = []
    for number, entry in enumerate(entries):
        example = {name: entry[name] for name in ("instruction", "input", "output")}
        for model, share in SHARE_RIGHT.items():
            is_right = draw.random() < share
            other = entries[(number + 7) % len(entries)]["output"]
            example[f"{model} response"] = entry["output"] if is_right else other
            quality[model].append(is_right)
        examples.append(example)
    write("eval-example-synthetic.json", examples)
    for judge, spread in (("gpt4", 15), ("llama3-8b", 30)):
        for model, verdicts in quality.items():
            scores = [score(draw, is_right, spread) for is_right in verdicts]
            name = f"judge-scores-synthetic-{judge}-{model.replace(' ', '-')}.json"
            write(name, scores)


def score(draw: random.Random, is_right: bool, spread: int) -> int:
    """A score around 90 for a right answer and around 20 for a wrong one, in steps of 5."""
    value = draw.gauss(90 if is_right else 20, spread)
    return 5 * round(min(100, max(0, value)) / 5)


def write(name: str, content: list) -> None:
    (SAMPLES / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(name)


if __name__ == "__main__":
    main()
