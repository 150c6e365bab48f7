"""Six novels by Jane Austen and the King James Bible as text files, out of Debian packages.

    python books_from_debian.py --output_dir books

For machines that reach a Debian or Ubuntu package mirror, but not Project Gutenberg. Needs
``apt-get`` and ``dpkg``; nothing is installed, root rights are not needed. All texts are in the
public domain. Paragraphs are unwrapped: one line each, with a blank line in between.
"""

import argparse
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.data.files import atomic_write

PACKAGES = ["r-cran-janeaustenr", "bible-kjv-text", "bible-kjv"]
R_STRING = 9  # type number of a character string in R's serialization
PLACE_OR_FAMILY = {  # each is by far the most frequent in its own novel
    "emma": "Highbury",
    "mansfield-park": "Mansfield",
    "northanger-abbey": "Tilney",
    "persuasion": "Wentworth",
    "pride-and-prejudice": "Bennet",
    "sense-and-sensibility": "Dashwood",
}


def unpack_packages(folder: Path) -> None:
    """Download the packages to ``folder`` and unpack them there, without installing anything."""
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is needed: run this on Debian or Ubuntu") from None
    except subprocess.CalledProcessError:
        raise ValueError("apt-get could not download the packages: try 'apt-get update'") from None


def austen_novels(folder: Path) -> dict[str, str]:
    """The novels in the R package ``janeaustenr``: a file of compressed R objects, one a novel."""
    data = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    packed = data.read_bytes()
    novels, position = {}, 0
    while position < len(packed):
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(packed[position + 4 :])  # 4 bytes: the size unpacked
        position = len(packed) - len(decompressor.unused_data)
        lines = r_strings(content)
        if len(lines) > 1000:  # not the small objects in between
            text = unwrap(lines)
            title = max(PLACE_OR_FAMILY, key=lambda name: text.count(PLACE_OR_FAMILY[name]))
            novels[title] = text
    return novels


def r_strings(content: bytes) -> list[str]:
    """The strings of one R object: each a header of 4 bytes, a length, and that many bytes."""
    strings, position = [], 14
    while position <= len(content) - 8:
        header, length = struct.unpack_from(">Ii", content, position)
        is_string = header & 0xFF == R_STRING and header >> 20 == 0
        if is_string and 0 <= length <= len(content) - position - 8:
            start = position + 8
            strings.append(content[start : start + length].decode("utf-8"))
            position = start + length
        else:
            position += 4 if not is_string else 8
    return strings


def unwrap(lines: list[str]) -> str:
    """Join the lines of each paragraph; paragraphs are separated by blank lines."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in joined if paragraph) + "\n"


def king_james_bible(folder: Path) -> str:
    """The Bible, one paragraph a chapter, printed by the package's own program."""
    verses = subprocess.run(
        [folder / "usr/bin/bible", "-p", folder / "usr/lib", "gen1:1-rev22:21"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # A line with a book's name and a chapter's number, alone between blank lines, then the verses
    paragraphs = re.split(r"\n\s*\n", verses.strip())
    without_numbers = (re.sub(r"(?m)^ +\d+ ", "", paragraph) for paragraph in paragraphs)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in without_numbers) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", default="books", help="folder to write to (default: books)")
    args = parser.parse_args()
    with short_errors(parser), tempfile.TemporaryDirectory() as temporary:
        output_dir = writable_folder(args.output_dir)
        unpack_packages(Path(temporary))
        texts = austen_novels(Path(temporary))
        texts["king-james-bible"] = king_james_bible(Path(temporary))
        for title, text in texts.items():
            path = output_dir / f"{title}.txt"
            with atomic_write(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
            print(f"{len(text):>9,} characters  {path}")


if __name__ == "__main__":
    main()
