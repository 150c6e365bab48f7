"""Combine many small text files (books, say) into few large ones for pretraining.

    python prepare_dataset.py --data_dir gutenberg/data/raw --output_dir gutenberg_preprocessed

Texts that are not English are left out, the boilerplate of Project Gutenberg and runs of blank
lines are removed, and the books are joined with <|endoftext|>.
"""

import argparse
import re
from pathlib import Path

from tqdm import tqdm

from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.data.files import atomic_write

START = re.compile(
    r"^\*\*\* ?START OF TH(E|IS) PROJECT GUTENBERG .*$", re.MULTILINE | re.IGNORECASE
)
END = re.compile(r"^\*\*\* ?END OF TH(E|IS) PROJECT GUTENBERG .*$", re.MULTILINE | re.IGNORECASE)


def is_english(text: str, threshold: float = 0.9) -> bool:
    """Whether more than ``threshold`` of the characters are ASCII; an empty text is not English.

    >>> is_english("Call me Ishmael."), is_english("Да здравствует"), is_english("")
    (True, False, False)
    """
    return bool(text) and sum(character < "\x80" for character in text) / len(text) > threshold


def strip_headers(text: str) -> str:
    """What lies between Project Gutenberg's marks of start and end; all of it without marks."""
    start, end = START.search(text), END.search(text)
    return text[start.end() if start else 0 : end.start() if end else len(text)].strip()


def read_book(path: Path, fallback_encoding: str = "latin1") -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        tqdm.write(f"Warning: {path} is not UTF-8, reading it as {fallback_encoding}")
        text = path.read_text(encoding=fallback_encoding)
    return re.sub(r"\n\s*\n", "\n\n", strip_headers(text))


def combine_files(
    file_paths: list[str | Path],
    target_dir: str | Path,
    max_size_mb: int = 500,
    separator: str = "<|endoftext|>",
    fallback_encoding: str = "latin1",
) -> int:
    """Write ``combined_1.txt``, ``combined_2.txt``, ... and return how many there are.

    A file is closed before a book would take it over ``max_size_mb`` megabytes (of 1024² bytes,
    separators included); a single larger book gets a file of its own.
    """
    if max_size_mb <= 0:
        raise ValueError(f"max_size_mb must be positive, got {max_size_mb}")
    target_dir = writable_folder(target_dir)
    limit = max_size_mb * 1024**2
    count, pending, size = 0, [], 0

    def write_pending() -> int:
        path = target_dir / f"combined_{count + 1}.txt"
        with atomic_write(path) as temporary:
            temporary.write_text(separator.join(pending), encoding="utf-8", newline="\n")
        return count + 1

    for path in tqdm(file_paths, unit="file"):
        book = read_book(Path(path), fallback_encoding)
        if not is_english(book):
            tqdm.write(f"Skipping {path}: not (or hardly) English")
            continue
        book_size = len((separator + book).encode("utf-8"))
        if pending and size + book_size > limit:
            count = write_pending()
            pending, size = [], 0
        pending.append(book)
        size += book_size
    return write_pending() if pending else count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir",
        default="gutenberg/data/raw",
        help="folder with .txt or .txt.utf8 files, at any depth (default: gutenberg/data/raw)",
    )
    parser.add_argument("--max_size_mb", type=int, default=500, help="per file (default: 500)")
    parser.add_argument(
        "--output_dir",
        default="gutenberg_preprocessed",
        help="folder to write to (default: gutenberg_preprocessed)",
    )
    args = parser.parse_args()
    with short_errors(parser):
        paths = sorted(
            path
            for path in Path(args.data_dir).rglob("*")
            if path.name.endswith((".txt", ".txt.utf8"))
        )
        if not paths:
            raise ValueError(f"there are no .txt or .txt.utf8 files below {args.data_dir}")
        print(f"{len(paths)} file(s) to process")
        count = combine_files(paths, args.output_dir, args.max_size_mb)
        print(f"{count} file(s) saved in {Path(args.output_dir)}")


if __name__ == "__main__":
    main()
