"""What counting words achieves: logistic regression on a bag of words, and the majority class.

Run download_prepare_dataset.py first. Both are lines of results.csv in the folder --out. With
--data sms-spam, the texts are the messages of chapter 6. Needs scikit-learn.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import time
from pathlib import Path

import pandas as pd

from llms_from_scratch.app.classification import (
    SPLITS,
    Results,
    add_baseline,
    add_run_options,
    review_splits,
    spam_splits,
)
from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.ch06 import ASSET
from llms_from_scratch.classification.texts import LabelledTexts


def load_dataframes(
    data: str = "runs/imdb", texts: dict[str, LabelledTexts] | None = None
) -> tuple[pd.DataFrame, ...]:
    """The three parts as tables with the columns ``text`` and ``label``."""
    splits = texts or review_splits(data)
    return tuple(
        pd.DataFrame({"text": split.texts, "label": split.labels}) for split in splits.values()
    )


def eval_model(model, X_train, y_train, X_val, y_val, X_test, y_test) -> tuple[float, ...]:
    """Accuracies of a fitted model on the three parts, which are printed as well."""
    pairs = ((X_train, y_train), (X_val, y_val), (X_test, y_test))
    accuracies = tuple(model.score(X, y) for X, y in pairs)
    for name, accuracy in zip(SPLITS, accuracies, strict=True):
        print(f"{name.capitalize()} accuracy: {accuracy:.2%}")
    return accuracies


def main(data: str, out: str) -> None:
    try:
        from sklearn.dummy import DummyClassifier
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ValueError("this script needs scikit-learn: pip install scikit-learn") from None
    is_spam = data == ASSET.name
    texts = spam_splits(data, Path(out)) if is_spam else review_splits(data)
    frames = load_dataframes(data, texts)
    models = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "bag of words, logistic regression": LogisticRegression(max_iter=1000),
    }
    results = Results(out)
    for name, model in models.items():
        started = time.perf_counter()
        vectorizer = CountVectorizer()
        counts = [vectorizer.fit_transform(frames[0]["text"])]
        counts += [vectorizer.transform(df["text"]) for df in frames[1:]]
        model.fit(counts[0], frames[0]["label"])
        print(name)
        parts = zip(counts, (df["label"] for df in frames), strict=True)
        accuracies = eval_model(model, *(item for pair in parts for item in pair))
        measured = dict(zip(SPLITS, accuracies, strict=True))
        measured["seconds"] = time.perf_counter() - started
        add_baseline(results, texts, data if is_spam else "IMDb", name, measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_options(parser, "runs/imdb", "runs/imdb")
    args = parser.parse_args()
    with short_errors(parser):
        main(args.data, args.out)
