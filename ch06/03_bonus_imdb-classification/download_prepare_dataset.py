"""Write train.csv, validation.csv and test.csv with film reviews, columns text and label.

The reviews are the 50,000 of the Large Movie Review Dataset, which are downloaded once, or those
of a CSV file (columns text and label, or review and sentiment). They are checked, shuffled and
split; texts that occur twice are reported, and with --drop_duplicates kept once.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import csv
import tarfile
from pathlib import Path

import pandas as pd

from llms_from_scratch.app.classification import report_duplicates
from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.classification.experiment import SPLITS
from llms_from_scratch.classification.texts import LabelledTexts, labelled_texts, read_reviews
from llms_from_scratch.data.archive import check_member_name
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.data.http import download

DATASET_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
DATASET_SIZE = 84_125_825  # bytes
SIZES = (35_000, 5_000, 10_000)


def check_archive(path: Path) -> None:
    """Raise ``ValueError`` for anything but the whole archive."""
    size = path.stat().st_size
    if size != DATASET_SIZE or not tarfile.is_tarfile(path):
        raise ValueError(f"{path} is not the whole archive of {DATASET_SIZE:,} bytes: has {size:,}")


def download_and_extract_dataset(
    dataset_url: str, target_file: str | Path, directory: str | Path
) -> None:
    """Download the archive and unpack its reviews, unless ``directory`` is there already."""
    directory, target_file = Path(directory), Path(target_file)
    if directory.is_dir():
        print(f"{directory} is there already: nothing is downloaded")
        return
    if not target_file.is_file():
        download([dataset_url], target_file, check=check_archive)
    with tarfile.open(target_file) as archive:
        members = [member for member in archive if member.isfile()]
        for member in members:
            check_member_name(member.name)
            path = directory.parent / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())


def load_dataset_to_dataframe(
    basepath: str | Path = "aclImdb", labels: dict | None = None
) -> pd.DataFrame:
    """All reviews of the unpacked archive, shuffled, with columns ``text`` and ``label``."""
    labels = labels or {"pos": 1, "neg": 0}
    rows = [
        {"text": path.read_text(encoding="utf-8"), "label": label}
        for part in ("test", "train")
        for name, label in labels.items()
        for path in sorted((Path(basepath) / part / name).glob("*.txt"))
    ]
    if not rows:
        raise ValueError(f"{basepath} has no reviews in test and train, pos and neg: unpack again")
    return pd.DataFrame(rows).sample(frac=1, random_state=123).reset_index(drop=True)


def partition_and_save(
    df: pd.DataFrame, sizes: tuple[int, int, int] = SIZES, out: str | Path = "."
) -> dict[str, LabelledTexts]:
    """Shuffle, cut into three parts of these sizes, and write them as CSV."""
    if sum(sizes) > len(df):
        raise ValueError(f"the sizes {sizes} are more than the {len(df)} reviews: take less")
    df = df.sample(frac=1, random_state=123).reset_index(drop=True)
    parts, start = {}, 0
    for name, size in zip(SPLITS, sizes, strict=True):
        part = df[start : start + size]
        parts[name] = labelled_texts(part, "text", "label", {0: 0, 1: 1}, f"{name}.csv")
        start += size
    for name, part in parts.items():
        table = pd.DataFrame({"text": part.texts, "label": part.labels})
        with atomic_write(Path(out) / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return parts


def main(data: str | None, sizes: list[int] | None, out: str, drop_duplicates: bool) -> None:
    folder = writable_folder(out)
    if data:
        reviews = read_reviews(data)
        df = pd.DataFrame({"text": reviews.texts, "label": reviews.labels})
    else:
        archive = folder / "aclImdb_v1.tar.gz"
        download_and_extract_dataset(DATASET_URL, archive, folder / "aclImdb")
        df = load_dataset_to_dataframe(folder / "aclImdb")
    plain = df["text"].str.lower().str.split().str.join(" ")
    print(f"{len(df):,} reviews, {plain.duplicated().sum():,} of which repeat another one")
    if drop_duplicates:
        df = df[~plain.duplicated()]
    if sizes is None:  # 70, 10 and 20 percent, which are the usual sizes for 50,000
        sizes = (int(0.7 * len(df)), int(0.1 * len(df)))
        sizes = (*sizes, len(df) - sum(sizes))
    parts = partition_and_save(df, tuple(sizes), folder)
    report_duplicates(parts)
    print(", ".join(f"{folder / name}.csv: {len(part):,} rows" for name, part in parts.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a CSV file of reviews, instead of the download")
    parser.add_argument(
        "--sizes", type=int, nargs=3, help="rows to train, validate, test (default: 70, 10, 20 %%)"
    )
    parser.add_argument("--out", default="runs/imdb", help="folder (default: runs/imdb)")
    parser.add_argument("--drop_duplicates", action="store_true", help="keep each text once")
    args = parser.parse_args()
    with short_errors(parser):
        main(args.data, args.sizes, args.out, args.drop_duplicates)
