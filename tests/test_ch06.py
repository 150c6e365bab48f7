"""Chapter 6: data, figures of the book, loss and accuracy, training, saving, and bad input."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run_script
from torch.utils.data import DataLoader

from llms_from_scratch import ch06 as ch06_module
from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel
from llms_from_scratch.ch06 import (
    ASSET,
    LABELS,
    REAL,
    SYNTHETIC,
    SYNTHETIC_NOTICE,
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    classify_review,
    classify_with_probability,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    evaluate_model,
    identify_data,
    load_classifier,
    load_messages,
    plot_values,
    random_split,
    replace_output_head,
    save_classifier,
    set_trainable_layers,
    train_classifier_simple,
    write_splits,
)
from llms_from_scratch.data import SAMPLES, Fetched
from llms_from_scratch.tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "ch06" / "01_main-chapter-code" / "gpt_class_finetune.py"
CONFIG = BASE_CONFIG | {"context_length": 16, "emb_dim": 12, "n_layers": 3, "n_heads": 2}


@pytest.fixture
def tokenizer():
    return get_tokenizer("gpt2")


@pytest.fixture
def model():
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    replace_output_head(model)
    return model


def download(folder):
    path = folder / "sms" / "SMSSpamCollection.tsv"
    download_and_unzip_spam_data(ASSET.urls[0], folder / "sms.zip", folder / "sms", path)
    return path


def loader_of(num_rows, batch_size=4, drop_last=False, num_tokens=8):
    generator = torch.Generator().manual_seed(1)
    rows = [
        (torch.randint(50257, (num_tokens,), generator=generator), torch.tensor(i % 2))
        for i in range(num_rows)
    ]
    return DataLoader(rows, batch_size=batch_size, drop_last=drop_last)


@pytest.fixture
def synthetic(tmp_path):
    with zipfile.ZipFile(SAMPLES / ASSET.sample) as archive:
        path = tmp_path / "SMSSpamCollection.tsv"
        path.write_bytes(archive.read(ASSET.member))
    return path


# --- the book's figures


@pytest.mark.real_data
def test_figures_of_the_book(tmp_path, tokenizer, capsys):
    path = download(tmp_path)
    assert identify_data(path) == REAL
    assert "synthetic" not in capsys.readouterr().out
    df = load_messages(path)
    assert df.shape == (5572, 2)
    assert df["Label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}
    balanced = create_balanced_dataset(df)
    assert balanced["Label"].value_counts().to_dict() == {"ham": 747, "spam": 747}
    assert list(balanced["Label"]) == ["ham"] * 747 + ["spam"] * 747
    balanced["Label"] = balanced["Label"].map(LABELS)
    splits = random_split(balanced, 0.7, 0.1)
    assert [len(split) for split in splits] == [1045, 149, 300]

    paths = write_splits(tmp_path, *splits)
    train = SpamDataset(paths[0], tokenizer)
    assert train.max_length == 120
    others = [SpamDataset(path, tokenizer, train.max_length) for path in paths[1:]]
    loaders = [DataLoader(train, batch_size=8, shuffle=True, drop_last=True)]
    loaders += [DataLoader(dataset, batch_size=8) for dataset in others]
    assert [len(loader) for loader in loaders] == [130, 19, 38]
    inputs, targets = next(iter(loaders[0]))
    assert (inputs.shape, targets.shape) == ((8, 120), (8,))

    tiny = GPTModel(CONFIG | {"context_length": 120, "emb_dim": 2, "n_layers": 1})
    replace_output_head(tiny)
    tiny.tok_emb.requires_grad_(False)
    optimizer = torch.optim.SGD(tiny.out_head.parameters(), lr=0.1)
    *curves, examples_seen = train_classifier_simple(
        tiny, loaders[0], loaders[1], optimizer, "cpu", 5, eval_freq=50, eval_iter=1
    )
    assert examples_seen == 5200 == 8 * 650
    assert [len(values) for values in curves] == [13, 13, 5, 5]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Ep 1 \(Step 000000\): Train loss \d\.\d{3}, Val loss \d\.\d{3}", lines[0])
    assert lines[-2].startswith("Ep 5 (Step 000600)")
    assert re.fullmatch(
        r"Training accuracy: \d+\.\d\d% \| Validation accuracy: \d+\.\d\d%", lines[-1]
    )


def test_the_books_four_token_example(tokenizer):
    assert tokenizer.encode("Do you have time") == [5211, 345, 423, 640]
    model = GPTModel(CONFIG)
    replace_output_head(model)
    assert model(torch.tensor([[5211, 345, 423, 640]])).shape == (1, 4, 2)
    assert model.out_head.bias is not None


# --- the bundled synthetic messages


def test_without_a_source_the_synthetic_messages_come_with_a_notice(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LLMS_FROM_SCRATCH_MIRROR", raising=False)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    with pytest.warns(UserWarning, match="bundled sample"):
        path = download(tmp_path)
    assert SYNTHETIC_NOTICE in capsys.readouterr().out
    assert identify_data(path) == SYNTHETIC
    download(tmp_path)  # an existing file is kept, and the notice is repeated
    printed = capsys.readouterr().out
    assert "already exists" in printed and SYNTHETIC_NOTICE in printed


def test_synthetic_messages_are_many_and_different(synthetic):
    df = load_messages(synthetic)
    assert len(df) == 2000 and df["Text"].nunique() == 2000
    assert df["Label"].value_counts().to_dict() == {"ham": 1400, "spam": 600}
    assert df["Template"].nunique() >= 100
    assert df.groupby("Template")["Label"].nunique().max() == 1


def test_synthetic_messages_are_split_by_template(synthetic):
    splits = random_split(create_balanced_dataset(load_messages(synthetic)), 0.7, 0.1)
    templates = [set(split["Template"]) for split in splits]
    assert not (templates[0] & templates[1] or templates[0] & templates[2])
    assert not templates[1] & templates[2]
    assert sum(len(split) for split in splits) == 1200
    assert 0.6 < len(splits[0]) / 1200 < 0.8
    assert all(set(split["Label"]) == {"ham", "spam"} for split in splits)


def test_generator_gives_the_committed_messages(tmp_path, monkeypatch):
    import make_sms_sample

    monkeypatch.setattr(make_sms_sample, "TARGET", tmp_path / "sample.zip")
    make_sms_sample.main()
    with (
        zipfile.ZipFile(tmp_path / "sample.zip") as made,
        zipfile.ZipFile(SAMPLES / ASSET.sample) as committed,
    ):
        for name in (ASSET.member, "templates.txt"):
            assert made.read(name) == committed.read(name)


# --- the data set


def write_csv(folder, content):
    path = folder / "messages.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_dataset_pads_with_the_tokenizers_token_and_cuts(tmp_path, tokenizer):
    path = write_csv(tmp_path, "Label,Text\n0,Do you have time\n1,Hi\n")
    dataset = SpamDataset(path, tokenizer)
    inputs, target = dataset[1]
    assert dataset.max_length == 4 and len(dataset) == 2
    assert inputs.tolist() == [17250, 50256, 50256, 50256]
    assert (inputs.dtype, target.dtype, target.item()) == (torch.long, torch.long, 1)
    assert SpamDataset(path, tokenizer, 2)[0][0].tolist() == [5211, 345]
    assert SpamDataset(path, tokenizer, pad_token_id=0)[1][0].tolist() == [17250, 0, 0, 0]


def test_csv_with_bom_crlf_quotes_and_newlines_in_fields(tmp_path, tokenizer):
    content = b'\xef\xbb\xbfLabel,Text\r\n0,"He said ""hi"", twice"\r\n1,"two\r\nlines"\r\n0,NA\r\n'
    dataset = SpamDataset(write_csv(tmp_path, content), tokenizer)
    texts = ['He said "hi", twice', "two\r\nlines", "NA"]
    assert list(dataset.data["Text"]) == texts
    assert dataset.max_length == max(len(tokenizer.encode(text)) for text in texts)


def test_splits_survive_writing_and_reading(tmp_path, tokenizer):
    texts = ["a,b", 'say "x"', "two\nlines", "null", "é £ 😀", "123"]
    df = pd.DataFrame({"Label": [0, 1] * 3, "Text": texts})
    paths = write_splits(tmp_path, df, df[:2], df[2:])
    assert [path.name for path in paths] == ["train.csv", "validation.csv", "test.csv"]
    assert list(SpamDataset(paths[0], tokenizer).data["Text"]) == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Label,Message\n0,hello\n", "no column 'Text'"),
        ("Text\nhello\n", "no column 'Label'"),
        ("Label,Text\n", "no rows"),
        ("", "not a table"),
        ("Label,Text\n2,hello\n", "unknown label 2"),
        ("Label,Text\nham,hello\n", "unknown label 'ham'"),
        ("Label,Text\n0,caf\xe9\n".encode("latin-1"), "not UTF-8"),
        ('Label,Text\n0,"never closed\n', "not a table"),
        ("Label,Text\n0,hello, world\n", "line 2: 3 fields separated by a comma instead of 2: put"),
        ("Label,Text\n0,a\n1\n", "line 3: 1 fields separated by a comma instead of 2: fill it"),
        ("Label,Text\n0,a\n1,b,c\n", "line 3: 3 fields .* put texts with a comma in quotes"),
        ("Label,Text\n0,a\0b\n", "contains NUL characters"),
        ("Label,Text\n0,a\n1,b\n3,c\n", "row 3: unknown label 3: labels must be 0 or 1"),
        ("Label,Text\n" + "x" * 99_999 + ",a\n", "row 1: unknown label 'x{59}: labels"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path, tokenizer, content, message):
    with pytest.raises(ValueError, match=message):
        SpamDataset(write_csv(tmp_path, content), tokenizer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Label\tText\nham\ta\n",
            "row 1: unknown label 'Label': .* is this a header",
        ),
        ("ham\ta\nspam,b\n", "line 2: 1 fields separated by a tab instead of 2.*'spam,b'"),
        ("ham\ta\nspam\tb\tc\n", "line 2: 3 fields separated by a tab instead of 2"),
        ("eggs" * 20_000 + "\ta\n", "row 1: unknown label"),
    ],
)
def test_a_bad_table_of_messages_is_refused_in_a_short_line(tmp_path, content, message):
    path = tmp_path / "messages.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        create_balanced_dataset(load_messages(path))
    assert len(str(error.value)) < 300 + len(str(path))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1]),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_texts_written_by_the_csv_module_are_read_as_they_are(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "messages.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Label", "Text"), *rows])
    df = load_messages(path)
    assert list(zip(df["Label"], df["Text"], strict=True)) == rows


@settings(max_examples=200)
@given(content=st.text('01,\t"\n Labext', max_size=40), suffix=st.sampled_from([".csv", ".tsv"]))
def test_any_text_is_a_table_or_a_value_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("tables") / f"messages{suffix}"
    path.write_text("Label,Text\n" + content if suffix == ".csv" else content, encoding="utf-8")
    try:
        df = load_messages(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(text, str) for text in df["Text"])


def test_bad_tables_are_refused_with_a_reason():
    for rows, message in (
        ([], "no rows"),
        ([("ham", "a"), ("ham", "b")], "no spam"),
        ([("spam", "a")], "no ham"),
        ([("ham", "a"), ("spam", "b"), ("eggs", "c")], "unknown label 'eggs'"),
    ):
        with pytest.raises(ValueError, match=message):
            create_balanced_dataset(pd.DataFrame(rows, columns=["Label", "Text"]))
    with pytest.raises(ValueError, match="no column 'Text'"):
        create_balanced_dataset(pd.DataFrame({"Label": ["ham"]}))
    with pytest.raises(ValueError, match="fractions"):
        random_split(pd.DataFrame({"Label": [0], "Text": ["a"]}), 0.8, 0.4)


def test_dataset_refuses_a_length_below_one(tmp_path, tokenizer):
    path = write_csv(tmp_path, "Label,Text\n0,a\n")
    with pytest.raises(ValueError, match="at least 1"):
        SpamDataset(path, tokenizer, max_length=0)


# --- model, loss, accuracy


def test_trainable_layers(model):
    def trainable():
        return {name.split(".weight")[0] for name, p in model.named_parameters() if p.requires_grad}

    set_trainable_layers(model, "last_layer")
    assert trainable() == {"out_head", "out_head.bias"}
    set_trainable_layers(model)
    names = trainable()
    assert "final_norm.scale" in names
    assert {name[:12] for name in names if name.startswith("trf")} == {"trf_blocks.2"}
    set_trainable_layers(model, "last_two_blocks")
    blocks = {name[:12] for name in trainable() if name.startswith("trf")}
    assert blocks == {"trf_blocks.1", "trf_blocks.2"}
    set_trainable_layers(model, "all")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="must be one of"):
        set_trainable_layers(model, "some")


def test_loss_is_the_cross_entropy_of_the_last_token(model):
    inputs, targets = next(iter(loader_of(4)))
    expected = torch.nn.functional.cross_entropy(model(inputs)[:, -1, :], targets)
    assert torch.equal(calc_loss_batch(inputs, targets, model, "cpu"), expected)
    loss = calc_loss_loader(loader_of(8), model, "cpu", num_batches=1)
    assert loss == pytest.approx(expected.item())
    assert calc_loss_loader(loader_of(4), model, "cpu", num_batches=9) == loss


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was(model, tokenizer, training):
    model.train(training)
    loader = loader_of(4)
    calc_accuracy_loader(loader, model, "cpu")
    evaluate_model(model, loader, loader, "cpu", 1)
    classify_review("Hello", model, tokenizer, "cpu")
    assert model.training is training
    assert torch.is_grad_enabled()


def test_accuracy_counts_every_row(model):
    class AlwaysSpam(torch.nn.Module):
        def forward(self, token_ids):
            return torch.tensor([0.0, 1.0]).expand(*token_ids.shape, 2)

    assert calc_accuracy_loader(loader_of(5), AlwaysSpam(), "cpu") == 2 / 5
    assert calc_accuracy_loader(loader_of(5, drop_last=True), AlwaysSpam(), "cpu") == 2 / 4


def test_without_a_batch_the_measures_are_nan_and_training_is_an_error(model):
    empty = loader_of(3, batch_size=4, drop_last=True)
    assert math.isnan(calc_accuracy_loader(empty, model, "cpu"))
    assert math.isnan(calc_loss_loader(empty, model, "cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="single batch"):
        train_classifier_simple(model, empty, empty, optimizer, "cpu", 1, 1, 1)


# --- use, saving, plots


def test_classify_review(model, tokenizer):
    answer = classify_review("You won!", model, tokenizer, "cpu")  # pads to the context
    assert answer in ("spam", "not spam")
    label, probability = classify_with_probability("You won!", model, tokenizer, "cpu")
    assert label == answer and 0.5 <= probability <= 1
    with torch.no_grad():
        model.out_head.bias.copy_(torch.tensor([0.0, 50.0]))
    assert classify_review("Hi", model, tokenizer, "cpu", 8) == "spam"
    with torch.no_grad():
        model.out_head.bias.copy_(torch.tensor([50.0, 0.0]))
    assert classify_review("Hi", model, tokenizer, "cpu", 8) == "not spam"


def test_classify_review_on_texts_that_do_not_fit(model, tokenizer):
    long_text = "word " * 40
    with pytest.warns(UserWarning, match="only the first 16 are read"):
        classify_review(long_text, model, tokenizer, "cpu")
    with pytest.warns(UserWarning, match="only the first 4 are read"):
        classify_review(long_text, model, tokenizer, "cpu", max_length=4)
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="empty"):
            classify_review(empty, model, tokenizer, "cpu")
    for wrong in (17, 0):
        with pytest.raises(ValueError, match="context of 16"):
            classify_review("Hi", model, tokenizer, "cpu", max_length=wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify_review("<|endoftext|>", model, tokenizer, "cpu")  # text like any other


def test_saved_classifier_gives_the_same_logits_in_a_new_process(model, tmp_path):
    save_classifier(tmp_path, model, CONFIG, max_length=16)
    token_ids = torch.arange(16)[None]
    with torch.no_grad():
        expected = model.eval()(token_ids)
    code = (
        "import sys, torch; from llms_from_scratch.ch06 import load_classifier;"
        "torch.set_num_threads(1); model, settings = load_classifier(sys.argv[1]);"
        "torch.save(model(torch.arange(16)[None]).detach(), sys.argv[1] + '/logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
    with pytest.raises(FileNotFoundError, match="train a classifier first"):
        load_classifier(tmp_path / "nowhere")


def test_plot_values_writes_the_books_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot_values([0, 1], [0, 8], [1, 0.5], [1, 0.6], label="accuracy")
    assert (tmp_path / "accuracy-plot.pdf").stat().st_size > 1000


# --- the script


def run_finetuning(*arguments, folder):
    return run_script(SCRIPT, *arguments, cwd=folder)


def test_script_trains_and_then_classifies(tmp_path):
    data = tmp_path / "mine.csv"
    rows = [f"ham,see you at {i}" for i in range(20)] + [f"spam,win {i} now" for i in range(20)]
    data.write_text("Label,Text\n" + "\n".join(rows), encoding="utf-8")
    done = run_finetuning("--preset", "tiny", "--data", "mine.csv", "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("Train", "Validation", "Test"):
        assert re.search(rf"{name} accuracy: \d+\.\d\d%", done.stdout)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["asset"] == "mine.csv" and metrics["split"] == "random"
    assert metrics["rows"] == [28, 4, 8]
    for name in ("review_classifier.safetensors", "review_classifier.json"):
        assert (tmp_path / "run" / name).is_file()
    for label in ("loss", "accuracy"):
        for suffix in ("pdf", "png"):
            assert (tmp_path / "run" / f"{label}-plot.{suffix}").is_file()

    done = run_finetuning("--classify", "win a prize", "--out", "run", folder=tmp_path)
    assert re.fullmatch(r"(not )?spam \(probability [01]\.\d{3}\)\n", done.stdout), done.stderr
    done = run_finetuning("--classify", " ", "--out", "run", folder=tmp_path)
    assert done.returncode == 2 and "empty" in done.stderr


def test_script_classifies_with_the_notebooks_classifier_too(model, tmp_path):
    save_classifier(tmp_path, model, CONFIG, max_length=16)  # it says no data set
    done = run_finetuning("--classify", "win a prize", "--out", ".", folder=tmp_path)
    assert done.returncode == 0 and "(probability " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv"], "neither a file"),
        (["--context-length", "121", "--data", "mine.csv"], "context of 120"),
        (["--context-length", "long", "--data", "mine.csv"], "must be longest_training_example"),
        (["--epochs", "0", "--data", "mine.csv"], "must be positive"),
        (["--learning-rate", "nan", "--data", "mine.csv"], "must be positive"),
        (["--out", ""], "--out is empty"),
        (["--compare", "--resume"], "it cannot --resume one"),
    ],
)
def test_script_refuses_what_cannot_work(tmp_path, arguments, message):
    rows = [f"{label},text {i}" for label in LABELS for i in range(20)]
    (tmp_path / "mine.csv").write_text("Label,Text\n" + "\n".join(rows), encoding="utf-8")
    done = run_finetuning("--preset", "tiny", "--out", "run", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def own_messages(tmp_path_factory):
    path = tmp_path_factory.mktemp("messages") / "mine.csv"
    rows = [f"{label},text {i}" for label in LABELS for i in range(200)]
    path.write_text("Label,Text\n" + "\n".join(rows), encoding="utf-8")
    return path


def test_script_never_replaces_a_run_silently_and_leaves_nothing_of_it_otherwise(
    own_messages, tmp_path
):
    arguments = ["--preset", "tiny", "--data", str(own_messages), "--out", "run"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("mine")
    (tmp_path / "run/notes.txt").write_text("mine too")
    done = run_finetuning(*arguments, folder=tmp_path)
    assert done.returncode == 2 and "--overwrite replaces it" in done.stderr
    assert "--resume" not in done.stderr  # there is nothing to resume
    assert (tmp_path / "run/metrics.json").read_text() == "mine"
    done = run_finetuning(*arguments, "--overwrite", "--learning-rate", "1e30", folder=tmp_path)
    assert done.returncode == 1 and "became nan" in done.stderr
    assert "Traceback" not in done.stderr and "Wrote" not in done.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"notes.txt", "train.csv", "validation.csv", "test.csv"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_stopped_script_goes_on_as_if_nothing_had_happened(own_messages, tmp_path):
    arguments = ["--preset", "tiny", "--data", str(own_messages), "--epochs", "8"]
    done = run_finetuning(*arguments, "--out", "whole", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(SCRIPT), *arguments, "--out", "halved"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(command, cwd=tmp_path, env=unbuffered, **pipes)
    while "Training accuracy" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "add --resume to continue" in printed
    assert "Stopping: this update is finished" in errors and "Traceback" not in errors
    assert (tmp_path / "halved/checkpoint.pth").is_file()
    for change, name in ((["--seed", "5"], "seed"), (["--learning-rate", "0.1"], "learning_rate")):
        done = run_finetuning(*arguments, *change, "--out", "halved", "--resume", folder=tmp_path)
        assert done.returncode == 2 and f"settings differ: {name} saved" in done.stderr
    done = run_finetuning(*arguments, "--out", "halved", "--resume", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    files = (tmp_path / folder / "metrics.json" for folder in ("whole", "halved"))
    one, other = (json.loads(path.read_text()) for path in files)
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "halved").iterdir()}
    done = run_finetuning(*arguments, "--out", "halved", "--resume", folder=tmp_path)
    assert done.returncode == 2 and "is finished" in done.stderr


def test_synthetic_messages_make_room_for_the_real_ones_when_these_can_be_had(
    tmp_path, monkeypatch, synthetic
):
    path = tmp_path / "messages.tsv"
    shutil.copyfile(synthetic, path)
    archive = tmp_path / "real.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(ch06_module.ASSET.member, b"ham\treal\n")

    def resolve(name, target, allow_sample=True):
        return Fetched(archive, "download")

    monkeypatch.setattr(ch06_module, "resolve", resolve)
    url = ch06_module.ASSET.urls[0]
    ch06_module.download_and_unzip_spam_data(url, tmp_path / "z.zip", tmp_path, path)
    assert path.read_bytes() == b"ham\treal\n"
    path.write_text("spam\tmine\n")
    ch06_module.download_and_unzip_spam_data(url, tmp_path / "z.zip", tmp_path, path)
    assert path.read_text() == "spam\tmine\n"  # a file of the reader's own stays
