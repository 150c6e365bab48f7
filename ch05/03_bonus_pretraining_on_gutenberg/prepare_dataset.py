"""Combine many small text files (books, say) into few large ones for pretraining.

    python prepare_dataset.py --data_dir gutenberg/data/raw --output_dir gutenberg_preprocessed

Texts that are not English are left out (--language any keeps them), the boilerplate of Project
Gutenberg and runs of blank lines are removed, and the books are joined with <|endoftext|>.
"""

import argparse
import codecs
import re
import tempfile
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from tqdm import tqdm

from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.data.formats import decode_text

LANGUAGES = ("english", "any")
COMBINED = re.compile(r"combined_\d+\.txt")
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
    """The text of a book; ``ValueError`` if it is in no known encoding, binary, or empty.

    A byte order mark says how the file is encoded; one without is UTF-8 or ``fallback_encoding``.
    """
    content = path.read_bytes()
    try:
        text = decode_text(content)
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":  # a mark promised something else
            raise ValueError(f"it is not whole: {error.encoding}, {error.reason}") from None
        tqdm.write(f"Warning: {path} is not UTF-8, reading it as {fallback_encoding}")
        try:
            text = decode_text(content, fallback_encoding)
        except UnicodeDecodeError as reason:
            raise ValueError(f"it is neither UTF-8 nor {fallback_encoding}: {reason}") from None
    if "\0" in text:
        raise ValueError("it has NUL characters: a binary file, or UTF-16 without its mark")
    book = re.sub(r"\n\s*\n", "\n\n", strip_headers(text))
    if not book:
        raise ValueError("it is empty")
    return book


def combine_files(
    file_paths: list[str | Path],
    target_dir: str | Path,
    max_size_mb: int = 500,
    separator: str = "<|endoftext|>",
    fallback_encoding: str = "latin1",
    language: str = "english",
) -> int:
    """Write ``combined_1.txt``, ``combined_2.txt``, ... and return how many there are.

    A file is closed before a book would take it over ``max_size_mb`` megabytes (of 1024² bytes,
    separators included); a single larger book gets a file of its own. With the language "any", no
    book is left out because it is not English. The files of an earlier run are replaced, all of
    them, when the new ones are whole; if no book is left, they stay, and the result is 0.
    """
    if max_size_mb <= 0:
        raise ValueError(f"max_size_mb must be positive, got {max_size_mb}")
    if language not in LANGUAGES:
        raise ValueError(f"the language must be one of {LANGUAGES}, got {language!r}")
    codecs.lookup(fallback_encoding)
    target_dir = writable_folder(target_dir)
    limit = max_size_mb * 1024**2
    count, pending, size = 0, [], 0

    with tempfile.TemporaryDirectory(dir=target_dir, prefix=".unfinished-") as folder:

        def write_pending() -> int:
            path = Path(folder) / f"combined_{count + 1}.txt"
            with atomic_write(path) as temporary:
                temporary.write_text(separator.join(pending), encoding="utf-8", newline="\n")
            return count + 1

        for path in tqdm(file_paths, unit="file"):
            try:
                book = read_book(Path(path), fallback_encoding)
                if language == "english" and not is_english(book):
                    raise ValueError("not (or hardly) English")
            except ValueError as error:
                tqdm.write(f"Skipping {path}: {error}")
                continue
            book_size = len((separator + book).encode("utf-8"))
            if pending and size + book_size > limit:
                count = write_pending()
                pending, size = [], 0
            pending.append(book)
            size += book_size
        count = write_pending() if pending else count
        if count:
            replace_combined(target_dir, Path(folder))
    return count


def replace_combined(target_dir: Path, new_dir: Path) -> None:
    """Put new combined files in the place of all old ones: leftovers would be trained on again."""
    old = {path.name for path in target_dir.iterdir() if COMBINED.fullmatch(path.name)}
    new = {path.name for path in new_dir.iterdir()}
    for name in new:
        (new_dir / name).replace(target_dir / name)
    for name in old - new:
        (target_dir / name).unlink()
    if old:
        print(f"{len(old)} file(s) of an earlier run in {target_dir} were replaced")


def find_books(data_dir: Path, output_dir: Path) -> list[Path]:
    """The text files below a folder, in order, without those that this script has written."""
    if not data_dir.is_dir():
        raise ValueError(f"there is no folder {data_dir}: name the one with your texts")
    paths = [
        path
        for path in sorted(data_dir.rglob("*"))
        if path.name.endswith((".txt", ".txt.utf8")) and path.is_file()
        if not (COMBINED.fullmatch(path.name) and path.parent.resolve() == output_dir.resolve())
    ]
    if not paths:
        raise ValueError(f"there are no .txt or .txt.utf8 files below {data_dir}")
    return paths


def encoding_name(name: str) -> str:
    try:
        codecs.lookup(name)
    except LookupError:
        raise argparse.ArgumentTypeError(f"Python knows no encoding {name!r}") from None
    return name


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
    parser.add_argument(
        "--language",
        choices=LANGUAGES,
        default="english",
        help="any keeps texts of all languages (default: english)",
    )
    parser.add_argument(
        "--fallback_encoding",
        type=encoding_name,
        default="latin1",
        help="of files that are not Unicode, such as gb18030 or cp1251 (default: latin1)",
    )
    args = parser.parse_args()
    with short_errors(parser):
        paths = find_books(Path(args.data_dir), Path(args.output_dir))
        print(f"{len(paths)} file(s) to process")
        count = combine_files(
            paths,
            args.output_dir,
            args.max_size_mb,
            fallback_encoding=args.fallback_encoding,
            language=args.language,
        )
        if not count:
            raise ValueError(
                f"all {len(paths)} file(s) were skipped, nothing was written; "
                "--language any keeps texts that are not English"
            )
        print(f"{count} file(s) saved in {Path(args.output_dir)}")


if __name__ == "__main__":
    main()
