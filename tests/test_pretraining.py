"""Chapter 5, bonus 03: preparing books, token files, and pretraining that continues exactly."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_script

from llms_from_scratch.ch02 import GPTDatasetV1
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.token_files import (
    TokenFileDataset,
    create_dataloaders,
    tokenize_file,
)
from llms_from_scratch.weights.pretrained import load_pretrained

FOLDER = Path(__file__).resolve().parent.parent / "ch05/03_bonus_pretraining_on_gutenberg"
BOOK = "It was a dark and stormy night; the rain fell in torrents, except at times. " * 40


def run(cwd, script, *args):
    return run_script(FOLDER / script, *args, cwd=cwd, env={"LLMS_FROM_SCRATCH_OFFLINE": "1"})


@pytest.fixture
def books(tmp_path):
    (tmp_path / "books/deeper").mkdir(parents=True)
    marks = "*** {} OF THE PROJECT GUTENBERG EBOOK X ***\n"
    files = {
        "a.txt": (
            "Legal text\n"
            + marks.format("START")
            + "First book.\n\n\n\n  \nGood.\n"
            + marks.format("END")
            + "More legal text"
        ).encode(),
        "deeper/b.txt.utf8": "Second book: café.".encode(),
        "c.txt": "Third book: naïve.".encode("latin1"),
        "d.txt": "Война и мир".encode(),
        "e.txt": b"",
        "f.doc": b"not a text",
    }
    for name, content in files.items():
        (tmp_path / "books" / name).write_bytes(content)
    return tmp_path / "books"


def test_books_are_cleaned_and_joined(books, tmp_path):
    done = run(tmp_path, "prepare_dataset.py", "--data_dir", books, "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    assert "5 file(s) to process" in done.stdout and "1 file(s) saved in out" in done.stdout
    text = (tmp_path / "out/combined_1.txt").read_text(encoding="utf-8")
    assert text.split("<|endoftext|>") == [
        "First book.\n\nGood.",
        "Third book: naïve.",
        "Second book: café.",
    ]
    assert "not UTF-8" in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("Skipping") == 2


def test_files_are_split_before_they_exceed_the_limit(tmp_path):
    (tmp_path / "books").mkdir()
    for i, megabytes in enumerate((0.6, 0.3, 0.2, 2.5, 0.1)):
        text = "x" * int(megabytes * 1024**2)
        (tmp_path / f"books/{i}.txt").write_text(text, encoding="utf-8")
    run(
        tmp_path,
        "prepare_dataset.py",
        "--data_dir",
        "books",
        "--output_dir",
        "out",
        "--max_size_mb",
        1,
    )
    sizes = [
        round(path.stat().st_size / 1024**2, 1) for path in sorted((tmp_path / "out").iterdir())
    ]
    assert sizes == [0.9, 0.2, 2.5, 0.1]


def prepare(cwd, *args):
    return run(cwd, "prepare_dataset.py", "--data_dir", "books", "--output_dir", "out", *args)


def write_books(folder, **contents) -> None:
    (folder / "books").mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"books/{name}.txt").write_bytes(content)


def test_texts_in_any_unicode_encoding_and_language_are_kept_if_asked(tmp_path):
    texts = {
        "a": ("Война и мир", "utf-16"),
        "b": ("红楼梦", "utf-8-sig"),
        "c": ("Плаха", "cp1251"),
        "d": ("An English one", "utf-16-be"),  # without a mark: it looks like a binary file
    }
    write_books(
        tmp_path, **{name: text.encode(encoding) for name, (text, encoding) in texts.items()}
    )
    done = prepare(tmp_path, "--language", "any", "--fallback_encoding", "cp1251")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/combined_1.txt").read_text(encoding="utf-8")
    assert text.split("<|endoftext|>") == ["Война и мир", "红楼梦", "Плаха"]
    assert "d.txt: it has NUL characters: a binary file, or UTF-16 without" in done.stdout


def test_a_cut_utf16_file_and_a_wrong_fallback_cost_one_book_each(tmp_path):
    cut, other = "An English text".encode("utf-16")[:-1], b"English \xff\xff"
    write_books(tmp_path, a=cut, b=other, c=b"English")
    done = prepare(tmp_path, "--fallback_encoding", "gb18030")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/combined_1.txt").read_text(encoding="utf-8") == "English"
    assert "a.txt: it is not whole: utf-16" in done.stdout.replace("utf-16-le", "utf-16")
    assert "b.txt: it is neither UTF-8 nor gb18030" in done.stdout


def test_nothing_left_is_a_failure_and_files_of_an_earlier_run_stay(tmp_path):
    write_books(tmp_path, a="Война и мир".encode(), b=b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/combined_1.txt").write_text("old", encoding="utf-8")
    done = prepare(tmp_path)
    assert done.returncode == 2
    assert "all 2 file(s) were skipped, nothing was written; --language any" in done.stderr
    assert (tmp_path / "out/combined_1.txt").read_text(encoding="utf-8") == "old"


def test_fewer_files_than_before_leave_none_of_the_old_ones(tmp_path):
    write_books(tmp_path, a=b"x" * 1024**2, b=b"y" * 1024**2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine", encoding="utf-8")
    for size, names in ((1, ["combined_1.txt", "combined_2.txt"]), (3, ["combined_1.txt"])):
        done = prepare(tmp_path, "--max_size_mb", size)
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "notes.txt"]
    assert "2 file(s) of an earlier run in out were replaced" in done.stdout


def test_its_own_files_are_no_books(tmp_path):
    write_books(tmp_path, a=b"A text.")
    for _ in range(2):
        done = run(tmp_path, "prepare_dataset.py", "--data_dir", ".", "--output_dir", ".")
        assert done.returncode == 0 and "1 file(s) to process" in done.stdout
    assert (tmp_path / "combined_1.txt").read_text(encoding="utf-8") == "A text."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fallback_encoding", "klingon"], "Python knows no encoding 'klingon'"),
        (["--data_dir", "nowhere"], "there is no folder nowhere"),
        (["--max_size_mb", "0"], "max_size_mb must be positive, got 0"),
        (["--output_dir", "books/a.txt"], "cannot write to books/a.txt"),
        (["--output_dir", ""], "the name of the folder to write to is empty"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path, args, message):
    write_books(tmp_path, a=b"A text.")
    done = prepare(tmp_path, *args)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_token_files_give_the_windows_of_the_plain_dataset(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
    tokenizer = get_tokenizer()
    path = tokenize_file(tmp_path / "book.txt", tmp_path / "t/book.npy", tokenizer)
    assert np.load(path).dtype == np.uint16
    for max_length, stride in ((8, 8), (8, 3), (5, 20)):
        windows = TokenFileDataset(path, max_length, stride)
        plain = GPTDatasetV1(BOOK + "<|endoftext|>", tokenizer, max_length, stride)
        assert len(windows) == len(plain)
        for (x, y), (a, b) in zip(windows, plain, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)


def test_a_text_is_tokenized_once_until_it_changes(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("One two three", encoding="utf-8")
    path = tokenize_file(text, tmp_path / "book.npy", get_tokenizer())
    os.utime(path, (path.stat().st_mtime + 10,) * 2)
    before = path.stat().st_mtime_ns
    tokenize_file(text, path, get_tokenizer())
    assert path.stat().st_mtime_ns == before
    text.write_text("One two three four", encoding="utf-8")
    os.utime(text, (path.stat().st_mtime + 10,) * 2)
    tokenize_file(text, path, get_tokenizer())
    assert len(np.load(path)) == 5


def token_ids_of(text):
    return [*get_tokenizer().encode(text), get_tokenizer().eot_token]


@settings(max_examples=30)
@given(
    texts=st.lists(st.sampled_from(["one two", "one six", "a", "one two three"]), min_size=1),
    ages=st.lists(st.integers(-1000, 1000), min_size=9, max_size=9),
)
def test_token_files_are_those_of_the_present_text_whatever_its_name_size_and_time(texts, ages):
    with TemporaryDirectory() as name:
        text, tokens = Path(name, "book.txt"), Path(name, "book.npy")
        for content, age in zip(texts, ages * len(texts), strict=False):
            text.write_text(content, encoding="utf-8")
            os.utime(text, (1.7e9 + age,) * 2)
            tokenize_file(text, tokens, get_tokenizer())
            assert np.load(tokens).tolist() == token_ids_of(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda tokens: tokens.write_bytes(tokens.read_bytes()[:-2]),
        lambda tokens: tokens.unlink(),
        lambda tokens: tokens.with_name("book.npy.json").write_text("{"),
        lambda tokens: tokens.with_name("book.npy.json").write_text("[]"),
        lambda tokens: np.save(tokens, np.arange(2, dtype=np.uint16)),
    ],
)
def test_a_damaged_token_file_is_made_again(tmp_path, harm):
    (tmp_path / "book.txt").write_text("One two three", encoding="utf-8")
    tokens = tokenize_file(tmp_path / "book.txt", tmp_path / "book.npy", get_tokenizer())
    harm(tokens)
    tokenize_file(tmp_path / "book.txt", tokens, get_tokenizer())
    assert np.load(tokens).tolist() == token_ids_of("One two three")


def test_another_vocabulary_gives_other_token_files(tmp_path):
    gpt2 = get_tokenizer()
    other = type(gpt2)(
        "other",
        pat_str=gpt2._pat_str,
        special_tokens={"<|endoftext|>": 256},
        mergeable_ranks={bytes([i]): i for i in range(256)},
    )
    (tmp_path / "book.txt").write_text("One", encoding="utf-8")
    tokenize_file(tmp_path / "book.txt", tmp_path / "book.npy", gpt2)
    tokenize_file(tmp_path / "book.txt", tmp_path / "book.npy", other)
    assert np.load(tmp_path / "book.npy").tolist() == [*b"One", 256]


def test_training_and_validation_parts_share_no_token(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(1000, dtype=np.uint16))
    train, val = create_dataloaders([tmp_path / "t.npy"], 0.9, 4, max_length=10, stride=10)
    seen = [
        {int(t) for x, y in loader for t in torch.cat([x, y]).flatten()} for loader in (train, val)
    ]
    assert seen[0].isdisjoint(seen[1]) and max(seen[0]) < 900 <= min(seen[1])


def test_texts_that_are_too_short_are_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(30, dtype=np.uint16))
    with pytest.raises(
        ValueError, match="the validation part .* less than one window of 10 tokens"
    ):
        create_dataloaders([tmp_path / "t.npy"], 0.9, 4, max_length=10, stride=10)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "books").mkdir()
    (folder / "books/one.txt").write_text(BOOK, encoding="utf-8")
    (folder / "books/two.txt").write_text(BOOK[::-1], encoding="utf-8")
    done = run(
        folder,
        "pretraining_simple.py",
        "--data_dir",
        "books",
        "--debug",
        "true",
        "--eval_freq",
        50,
        "--save_ckpt_freq",
        40,
        "--n_epochs",
        2,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_pretraining_runs_on_a_folder_of_texts(pretrained):
    folder, printed = pretrained
    assert "Maximum GPU memory allocated: 0.00 GB" in printed
    assert "Wrote model_pg_final.pth, settings.json" in printed
    loaded = load_pretrained(folder / "model_checkpoints-debug/model_pg_final.pth")
    assert loaded.config["emb_dim"] == 12
    records = [
        json.loads(line) for line in (folder / "model_checkpoints-debug/train-log.jsonl").open()
    ]
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "holds the results of another run (checkpoint.pth"),
        (["--resume", "--lr", "0.1"], "settings differ: lr saved 0.0005, wanted 0.1"),
        (["--resume", "--seed", "5"], "settings differ: seed saved 123, wanted 5"),
        (["--resume", "--batch_size", "2"], "batch_size saved 4, wanted 2"),
        (["--resume", "--data_dir", "others"], "settings differ: data_sha256"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(pretrained, args, message):
    folder, _ = pretrained
    (folder / "others").mkdir(exist_ok=True)
    (folder / "others/one.txt").write_text(BOOK.replace("rain", "snow"), encoding="utf-8")
    (folder / "others/two.txt").write_text(BOOK[::-1], encoding="utf-8")
    weights = (folder / "model_checkpoints-debug/checkpoint.pth").read_bytes()
    options = ["--data_dir", "books", "--debug", "--n_epochs", 2, *args]
    done = run(folder, "pretraining_simple.py", *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert (folder / "model_checkpoints-debug/checkpoint.pth").read_bytes() == weights


def test_a_finished_run_says_so_and_can_be_prolonged(pretrained):
    folder, _ = pretrained
    log = folder / "model_checkpoints-debug/train-log.jsonl"
    lines = len(log.read_text().splitlines())
    options = ["--data_dir", "books", "--debug", "--resume"]
    done = run(folder, "pretraining_simple.py", *options, "--n_epochs", 2)
    assert done.returncode == 0 and f"was finished after {lines} updates" in done.stdout
    assert len(log.read_text().splitlines()) == lines
    done = run(folder, "pretraining_simple.py", *options, "--n_epochs", 3)
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().splitlines()) == lines // 2 * 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data_dir", "nowhere"], "there are no .txt files below nowhere"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--print_sample_iter", "0"], "--print_sample_iter must be at least 1, got 0"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["--debug", "perhaps"], "'perhaps' is neither true nor false"),
    ],
)
def test_bad_input_is_reported_with_exit_code_2(tmp_path, args, message):
    done = run(tmp_path, "pretraining_simple.py", *args)
    assert done.returncode == 2 and message in done.stderr
