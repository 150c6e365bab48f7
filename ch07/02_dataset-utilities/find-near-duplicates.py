"""Find entries of an instruction data set that say nearly the same, and remove them.

Examples:
    python find-near-duplicates.py                                 # four built-in examples
    python find-near-duplicates.py --json_file instruction-examples.json
    python find-near-duplicates.py --json_file entries.json --remove_duplicates \\
        --json_output_file clean.json

Texts are compared without punctuation and upper case, by their pieces of one to three characters:
how often each occurs, weighted by how rare it is (TF-IDF). The score is the cosine of the angle
between two such vectors, 1 for the same text.
"""

import argparse
import json
import string
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data.files import atomic_write

EXAMPLES = [
    {"instruction": "What is the capital of Italy?", "input": "", "output": "It is Rome."},
    {"instruction": "What's the capital city of Italy?", "input": "", "output": "It is Rome!"},
    {"instruction": "Identify the main verb.", "input": "The cat sleeps.", "output": "sleeps"},
    {"instruction": "Identify the verb.", "input": "The dog sings.", "output": "sings"},
]
KEYS = ("instruction", "input", "output")
REMOVE_BY = ("input", "output")  # one instruction may be asked about many inputs
FREQUENT = 0.02  # share of texts that have a piece
BLOCK = 512  # rows that are compared with all others at a time


def preprocess_text(text: str) -> str:
    """A text in lower case, without punctuation."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def find_near_duplicates(
    json_data: list[dict], threshold: float = 0.75, key: str = "instruction"
) -> tuple[list[dict], list[tuple[dict, dict, float]]]:
    """The data with one entry of each group, and the pairs whose texts under ``key`` are alike.

    A pair is ``(entry_a, entry_b, score)`` with a score above ``threshold``. An entry is kept
    unless it is like one that is kept before it. Texts that are empty are like nothing.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold must be from 0 to 1, got {threshold}")
    texts = [preprocess_text(entry[key]) for entry in json_data]
    numbers = [i for i, text in enumerate(texts) if text.strip()]
    first: dict[str, int] = {}
    for i in numbers:
        first.setdefault(texts[i], i)
    same = [(first[texts[i]], i, 1.0) for i in numbers if first[texts[i]] != i]
    pairs = sorted(same + similar_pairs(texts, list(first.values()), threshold))
    removed: set[int] = set()
    for a, b, _ in pairs:
        if a not in removed:
            removed.add(b)
    kept = [entry for i, entry in enumerate(json_data) if i not in removed]
    return kept, [(json_data[a], json_data[b], score) for a, b, score in pairs]


def similar_pairs(texts: list[str], numbers: list[int], threshold: float) -> list[tuple]:
    """Pairs ``(a, b, score)`` of the numbered texts, all different, with a score above it.

    Pieces that many texts have cost most and tell least. So the scores are computed from the other
    pieces first, a block of rows at a time. What the frequent ones can add is at most the product
    of the lengths of their parts of the two vectors; only pairs that may then be above the
    threshold get their whole score.
    """
    if len(numbers) < 2:
        return []
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), dtype=np.float32)
    vectors = vectorizer.fit_transform([texts[i] for i in numbers])
    is_rare = np.bincount(vectors.indices, minlength=vectors.shape[1]) <= FREQUENT * len(numbers)
    rare, frequent = vectors[:, is_rare], vectors[:, ~is_rare]
    lengths = np.sqrt(frequent.multiply(frequent).sum(axis=1)).A1  # (texts,)
    light = lengths * lengths.max() < threshold - 1e-4  # alike only if they share a rare piece
    found = []
    for part, chosen in ((rare, light.nonzero()[0]), (vectors, (~light).nonzero()[0])):
        others = part.T.tocsr()
        rest = lengths if part is rare else np.zeros_like(lengths)
        for start in range(0, len(chosen), BLOCK):
            block = chosen[start : start + BLOCK]
            scores = (part[block] @ others).tocoo()
            rows, columns = block[scores.row], scores.col
            possible = scores.data + rest[rows] * rest[columns] > threshold - 1e-4
            possible &= columns > rows
            rows, columns = rows[possible], columns[possible]
            whole = np.asarray(vectors[rows].multiply(vectors[columns]).sum(axis=1)).ravel()
            for row, column, score in zip(rows, columns, whole, strict=True):
                if score > threshold:
                    found.append((*sorted((numbers[row], numbers[column])), float(score)))
    return found


def find_print_and_remove_near_duplicates(
    json_data: list[dict], remove_duplicates: bool = False, threshold: float = 0.75
) -> list[dict]:
    """Print the pairs by each key; return the data, without what is like another if wanted.

    Entries are removed for their input or their output only: one instruction may be asked about
    many inputs.
    """
    for key in KEYS:
        kept, pairs = find_near_duplicates(json_data, threshold, key)
        print(f"{key}: {len(pairs)} pairs above {threshold:.2f}")
        for a, b, score in pairs[:50]:
            print(f"  {score:.2f}  {a[key]!r:.120}\n        {b[key]!r:.120}")
        if len(pairs) > 50:
            print(f"  ... and {len(pairs) - 50} more")
        if remove_duplicates and key in REMOVE_BY:
            json_data = kept
    return json_data


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json_file", help="a list of entries (default: four built-in ones)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.9,
        help="score above which two are alike (default: 0.9)",
    )
    parser.add_argument(
        "--remove_duplicates", action="store_true", help="write the entries without duplicates"
    )
    parser.add_argument("--json_output_file", help="where to; needed with --remove_duplicates")
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        if args.remove_duplicates and not args.json_output_file:
            raise ValueError("--remove_duplicates needs a --json_output_file to write to")
        data = load_entries(args.json_file) if args.json_file else EXAMPLES
        kept = find_print_and_remove_near_duplicates(data, args.remove_duplicates, args.threshold)
        if args.remove_duplicates:
            with atomic_write(Path(args.json_output_file)) as temporary:
                text = json.dumps(kept, indent=4, ensure_ascii=False) + "\n"
                temporary.write_text(text, encoding="utf-8")
            print(f"{len(kept)} of {len(data)} entries are in {args.json_output_file}")
