"""Chapter 6's bonus: every option has its effect, frozen layers once, bad input named at once."""

import argparse
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from llms_from_scratch.app import classification as app
from llms_from_scratch.appendix_e import LinearWithLoRA
from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.classification.experiment import (
    Settings,
    choose_length,
    predict,
    prepare,
    run_experiment,
)
from llms_from_scratch.classification.explain import gradient_times_input
from llms_from_scratch.classification.figures import table_of, write_report
from llms_from_scratch.classification.models import LinearWithLoRAMerged, TextClassifier
from llms_from_scratch.classification.texts import (
    EncodedTexts,
    LabelledTexts,
    LengthBatches,
    TextBatch,
    duplicates_across,
    encode_all,
    labelled_texts,
    read_reviews,
)
from llms_from_scratch.llama3 import SMOLLM2_CONFIG_135M, Llama3Model
from llms_from_scratch.weights.pretrained import Pretrained

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "ch06" / "02_bonus_additional-experiments" / "additional_experiments.py"
IMDB = ROOT / "ch06" / "03_bonus_imdb-classification"
CONFIG = {
    "vocab_size": 128,
    "context_length": 32,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
LLAMA = SMOLLM2_CONFIG_135M | {
    "vocab_size": 128,
    "context_length": 32,
    "emb_dim": 16,
    "n_heads": 4,
    "n_layers": 3,
    "n_kv_groups": 2,
    "hidden_dim": 24,
}


class Letters:
    """A tokenizer whose tokens are ASCII letters; other characters have none."""

    eot_token = 0

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if 0 < ord(letter) < 128]

    def decode(self, token_ids) -> str:
        return "".join(map(chr, token_ids))


def pretrained(kind: str = "gpt") -> Pretrained:
    torch.manual_seed(1)
    model = GPTModel(CONFIG) if kind == "gpt" else Llama3Model(LLAMA)
    for parameter in model.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.3)
    config = CONFIG if kind == "gpt" else LLAMA
    found = Pretrained(kind, config, model.eval(), make_tokenizer=Letters)
    found.pad_id = 0
    return found


def some_texts(count: int = 24) -> dict[str, LabelledTexts]:
    words = [
        f"win {'!' * (1 + i % 7)}" if i % 2 else f"home at {i} {'o' * (i % 5)}"
        for i in range(count)
    ]
    data = LabelledTexts(words, [i % 2 for i in range(count)])
    return {"train": data, "validation": data, "test": data}


def run(kind: str = "gpt", **settings):
    settings = Settings(**{"num_epochs": 1, "learning_rate": 1e-2} | settings)
    prepared = prepare(pretrained(kind), some_texts(), settings)
    return prepared, run_experiment(prepared, settings, eval_freq=1, eval_iter=1)


# -- frozen layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {"trainable_layers": "last_layer"},
        {"trainable_layers": "last_block", "trainable_token_pos": "flexible"},
        {"trainable_layers": "last_two_blocks", "average_embeddings": True},
        {"trainable_layers": "last_block", "disable_causal_mask": True},
        {"trainable_layers": "lora", "last_blocks": 1, "trainable_token_pos": "flexible"},
        {"no_padding": True, "batch_size": 1, "accumulation_steps": 4},
    ],
    ids=str,
)
def test_frozen_layers_computed_once_give_the_same_numbers(kind, options):
    once, with_cache = run(kind, **options)
    always, without = run(kind, cache_frozen=False, **options)
    assert once.classifier.start > 0 and always.classifier.start == 0
    torch.testing.assert_close(
        torch.tensor(with_cache.probabilities["test"]),
        torch.tensor(without.probabilities["test"]),
        atol=1e-6,
        rtol=0,
    )
    assert with_cache.train_losses == pytest.approx(without.train_losses, abs=1e-6)


def test_where_all_layers_learn_nothing_is_computed_ahead():
    for layers in ("all", "lora", "lora_alternative"):
        assert (
            prepare(pretrained(), some_texts(), Settings(trainable_layers=layers)).classifier.start
            == 0
        )


# -- one test for each option --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "changed"),
    [
        ("last_layer", {"out_head"}),
        ("last_block", {"out_head", "final_norm", "trf_blocks.2"}),
        ("last_two_blocks", {"out_head", "final_norm", "trf_blocks.1", "trf_blocks.2"}),
        (
            "all",
            {"out_head", "final_norm", "tok_emb", "pos_emb"}
            | {f"trf_blocks.{i}" for i in range(3)},
        ),
        ("lora", {"out_head", "trf_blocks.0", "trf_blocks.1", "trf_blocks.2"}),
    ],
)
def test_trainable_layers_are_those_that_change(layers, changed):
    settings = Settings(num_epochs=1, learning_rate=1e-2, trainable_layers=layers)
    prepared = prepare(pretrained(), some_texts(), settings)
    model = prepared.classifier.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run_experiment(prepared, settings)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    parts = {".".join(name.split(".")[: 2 if "trf" in name else 1]) for name in moved}
    assert parts == changed
    if layers == "lora":
        assert all("lora" in name for name in moved if "trf_blocks" in name)


def test_last_blocks_widens_last_block_and_narrows_lora():
    def learning(**options):
        model = prepare(pretrained(), some_texts(), Settings(**options)).classifier.model
        return [any(p.requires_grad for p in block.parameters()) for block in model.trf_blocks]

    assert learning(last_blocks=2) == [False, True, True]
    assert learning(trainable_layers="lora", last_blocks=2) == [False, True, True]
    with pytest.raises(ValueError, match=r"last_blocks must be from 1 to the model's 3, got 4"):
        learning(last_blocks=4)


def test_the_alternative_lora_is_everywhere_and_computes_the_same():
    one, first = run(trainable_layers="lora")
    two, second = run(trainable_layers="lora_alternative")
    kinds = [type(m) for m in two.classifier.modules() if isinstance(m, LinearWithLoRA)]
    assert kinds == [LinearWithLoRAMerged] * 18  # 6 in each of 3 blocks
    torch.testing.assert_close(
        torch.tensor(first.probabilities["test"]),
        torch.tensor(second.probabilities["test"]),
        atol=1e-4,
        rtol=1e-3,
    )


def test_rank_and_alpha_of_lora():
    prepared, _ = run(trainable_layers="lora", lora_rank=3, lora_alpha=6)
    lora = prepared.classifier.model.trf_blocks[0].att.W_query.lora
    assert lora.A.shape == (16, 3) and lora.scaling == 2


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_the_token_position_is_the_one_that_is_read(kind):
    ids = torch.tensor([[5, 6, 7, 8, 0, 0]])
    batch = TextBatch(ids, torch.tensor([4]))

    def changed_by(position: int, **options) -> bool:
        """Whether the answer notices another token there."""
        torch.manual_seed(3)
        classifier = TextClassifier(pretrained(kind).model, **options).eval()
        other = ids.clone()
        other[0, position] = 9
        with torch.no_grad():
            return not torch.allclose(
                classifier(batch), classifier(TextBatch(other, batch.lengths)), atol=1e-6
            )

    assert [changed_by(i, token_pos="first") for i in range(6)] == [True] + [False] * 5
    assert [changed_by(i, token_pos="last") for i in range(6)] == [True] * 6
    assert [changed_by(i, token_pos="flexible") for i in range(6)] == [True] * 4 + [False] * 2
    assert [changed_by(i, average_embeddings=True) for i in range(6)] == [True] * 4 + [False] * 2
    unmasked = {"token_pos": "first", "causal": False}
    assert [changed_by(i, **unmasked) for i in range(6)] == [True] * 6


def test_the_mean_is_over_the_final_embeddings_of_real_tokens():
    classifier = TextClassifier(pretrained().model, average_embeddings=True).eval()
    batch = TextBatch(torch.tensor([[5, 6, 7, 0]]), torch.tensor([3]))
    model = classifier.model
    with torch.no_grad():
        x = classifier.run_blocks(classifier.embed(batch.values), 0, 3)
        wanted = model.out_head(model.final_norm(x)[:, :3].mean(dim=1))
        torch.testing.assert_close(classifier(batch)[:, 0], wanted)


def test_an_ignored_label_is_not_learned():
    def share_of_ones(ignore_index: int) -> float:
        _, result = run(ignore_index=ignore_index, num_epochs=4, trainable_layers="all")
        answers = [row.index(max(row)) for row in result.probabilities["test"]]
        return sum(answers) / len(answers)

    assert share_of_ones(0) == 1.0 and share_of_ones(1) == 0.0
    assert share_of_ones(50256) == share_of_ones(-100)  # no label is a token: nothing is ignored
    with pytest.raises(ValueError, match="ignore_index is 1, the label of all training texts"):
        ones = LabelledTexts(["ab", "cd"], [1, 1])
        settings = Settings(ignore_index=1)
        run_experiment(prepare(pretrained(), dict.fromkeys(some_texts(), ones), settings), settings)


def test_without_padding_no_token_is_computed_that_is_none():
    settings = Settings(no_padding=True, batch_size=1, cache_frozen=False)
    prepared = prepare(pretrained(), some_texts(), settings)
    assert all(
        len(v) == n
        for v, n in zip(prepared.data["train"].values, prepared.data["train"].lengths, strict=True)
    )
    padded = prepare(pretrained(), some_texts(), Settings(cache_frozen=False))
    assert {len(values) for values in padded.data["train"].values} == {padded.max_length}


def test_accumulated_batches_make_one_update_with_the_same_gradient():
    one, _ = run(batch_size=24, trainable_layers="all", trainable_token_pos="flexible")
    many, _ = run(
        batch_size=1,
        accumulation_steps=24,
        no_padding=True,
        trainable_layers="all",
        trainable_token_pos="flexible",
    )
    for a, b in zip(one.classifier.parameters(), many.classifier.parameters(), strict=True):
        # Adam's first step is the sign of the gradient: where that is almost 0, it may flip
        assert ((a - b).abs() > 1e-3).float().mean() < 0.02


def test_context_length_cuts_texts_and_must_fit():
    texts = some_texts()["train"]
    encode = Letters().encode_ordinary
    longest = max(len(text) for text in texts.texts)
    assert choose_length(texts, encode, "longest_training_example", 32) == longest
    assert choose_length(texts, encode, "longest_training_example", 5) == 5
    assert choose_length(texts, encode, "model_context_length", 32) == 32
    with pytest.raises(ValueError, match="at most the model's context of 32, got 33"):
        choose_length(texts, encode, "33", 32)
    prepared, _ = run(context_length="4")
    assert {len(values) for values in prepared.data["test"].values} == {4}
    prepared, _ = run(context_length="model_context_length")
    assert {len(values) for values in prepared.data["test"].values} == {32}


def test_other_options_change_the_run():
    def losses(**options) -> list[float]:
        return run(**{"trainable_layers": "all", "num_epochs": 2} | options)[1].train_losses

    usual = losses()
    assert losses() == usual
    assert losses(seed=5) != usual
    assert losses(learning_rate=1e-3) != usual
    assert len(losses(num_epochs=3)) == 9 and len(losses(batch_size=4)) == 12
    assert losses(schedule="cosine") != usual
    assert losses(precision="bf16") != usual


def test_the_best_epoch_is_kept():
    _, result = run(keep_best=True, num_epochs=4, learning_rate=0.3, trainable_layers="all")
    assert result.accuracies["validation"] == pytest.approx(max(result.epoch_val_accuracies))


def test_a_model_without_a_stored_mask_says_so():
    with pytest.raises(ValueError, match="GPTModelFast has no mask that could be removed"):
        TextClassifier(GPTModelFast(CONFIG), causal=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_layers": "some"}, "trainable_layers must be one of .*'some'"),
        ({"trainable_token_pos": "middle"}, "trainable_token_pos must be one of .*'middle'"),
        ({"context_length": "long"}, "context_length must be one of .*'long'"),
        ({"context_length": "0"}, "context_length must be one of .*'0'"),
        ({"no_padding": True}, "batch_size must be 1, got 8"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"schedule": "step"}, "schedule must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


# -- batches -------------------------------------------------------------------------------------


def test_batches_by_length_hold_every_text_once_with_less_padding():
    data = encode_all(some_texts()["train"], Letters().encode_ordinary)
    torch.manual_seed(0)
    batches = list(LengthBatches(data, 4, shuffle=True))
    rows = sorted(
        tuple(ids[:n].tolist())
        for b, _ in batches
        for ids, n in zip(b.values, b.lengths, strict=True)
    )
    assert rows == sorted(tuple(values.tolist()) for values in data.values)
    by_length = sum(batch.numel() for batch, _ in batches)
    torch.manual_seed(0)
    mixed = sum(b.numel() for b, _ in LengthBatches(data, 4, shuffle=True, by_length=False))
    assert sum(data.lengths) <= by_length < mixed


def test_predictions_come_in_the_order_of_the_data():
    prepared = prepare(pretrained(), some_texts(), Settings(trainable_token_pos="flexible"))
    data = prepared.data["test"]
    logits, labels = predict(prepared.classifier, LengthBatches(data, 5))
    assert labels.tolist() == data.labels
    alone = [
        predict(prepared.classifier, LengthBatches(EncodedTexts([v], [n], [0]), 1))[0][0]
        for v, n in zip(data.values, data.lengths, strict=True)
    ]
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=1e-4)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0), ("", 1)], r"mine, row 2, column 'Text': the cell is empty"),
        ([("a", 0), ("  ", 1)], r"mine, row 2, column 'Text': the cell is empty"),
        ([(float("nan"), 0), ("b", 1)], r"mine, row 1, column 'Text': the cell is no text but nan"),
        ([("a", 0), ("b", float("nan"))], r"mine, row 2, column 'Label': unknown label nan"),
        ([("a", 0), ("b", 2)], r"mine, row 2, column 'Label': unknown label 2; it must be .*0, 1"),
        ([("a", 1), ("b", 1)], r"mine, rows 1 to 2, column 'Label': all have the label 1"),
        ([], "mine has no rows"),
    ],
)
def test_a_bad_row_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        labelled_texts(
            pd.DataFrame(rows, columns=["Text", "Label"]), "Text", "Label", {0: 0, 1: 1}, "mine"
        )


def test_a_text_without_tokens_is_named():
    data = LabelledTexts(["a", "äöü"], [0, 1], "mine.csv", "text")
    with pytest.raises(ValueError, match=r"mine.csv, row 2, column 'text': 'äöü' encodes to no"):
        encode_all(data, Letters().encode_ordinary)


def test_a_file_of_another_encoding_is_named_with_line_and_column(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_bytes('label,text\n1,"good, very"\n0,"a caf\u00e9, bad"\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3, column 2: byte \d+ \(0xe9\) is not UTF-8"):
        read_reviews(path)
    path.write_text("text,label\ngood,1\nbad,0\n", encoding="utf-16")
    with pytest.raises(ValueError, match="line 1, column 1: byte 0 .* is not UTF-8"):
        read_reviews(path)


def test_both_kinds_of_review_files_are_read(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text('text,label\n"NA, fine",1\nbad,0\n', encoding="utf-8")
    two.write_text('review,sentiment\n"NA, fine",positive\nbad,negative\n', encoding="utf-8")
    assert read_reviews(one).texts == read_reviews(two).texts == ["NA, fine", "bad"]
    assert read_reviews(one).labels == read_reviews(two).labels == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Label,Text\nham,hi\nspam,\n", "row 2, column 'Text': the cell is empty"),
        ("Label,Text\nham,hi\neggs,win\n", "row 2, column 'Label': unknown label 'eggs'"),
        ("Label,Text\nham,hi\nham,home\n", "rows 1 to 2, column 'Label'"),
    ],
)
def test_the_script_names_bad_rows_before_it_loads_a_model(content, message, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        app.spam_splits(str(tmp_path / "mine.csv"), tmp_path)


def test_texts_that_are_in_two_splits_are_counted():
    one = LabelledTexts(["Good  film", "bad"], [1, 0])
    two = LabelledTexts(["good film", "other"], [1, 0])
    assert duplicates_across({"train": one, "validation": two, "test": two}) == {
        ("train", "validation"): 1,
        ("train", "test"): 1,
        ("validation", "test"): 2,
    }


# -- explanations, results, scripts --------------------------------------------------------------


def test_gradient_times_input_finds_the_only_token_that_counts():
    classifier = TextClassifier(pretrained().model, token_pos="first")
    scores = gradient_times_input(classifier, [5, 6, 7], label=1)
    assert scores[0] != 0 and scores[1:] == [0, 0]
    assert gradient_times_input(classifier, [5, 6, 7], label=0)[0] == pytest.approx(-scores[0])


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_args(script, tmp_path, *options):
    args = script.parser_of_options().parse_args(
        ["--device", "cpu", "--out", str(tmp_path), *options]
    )
    return args


def use_small_model(monkeypatch):
    """The scripts' bundled model, with a few letters as its vocabulary: a row in milliseconds."""
    monkeypatch.setattr(app, "load_pretrained", lambda name: pretrained())
    monkeypatch.setattr(app, "choose_pretrained", lambda name: pretrained())


def test_all_nineteen_rows_run_and_are_not_done_twice(tmp_path, monkeypatch, capsys):
    use_small_model(monkeypatch)
    script = load_script(EXPERIMENTS)
    script.main(small_args(script, tmp_path, "--tiny", "--all"))
    rows = app.Results(tmp_path).rows
    # With one small model for all sizes, rows 6 to 9 repeat 1 and 5, which is done once
    assert [int(row["row"]) for row in rows] == [1, 2, 3, 4, 5, *range(10, 20)]
    before = (tmp_path / "results.csv").read_bytes()
    capsys.readouterr()
    script.main(small_args(script, tmp_path, "--tiny", "--all"))
    assert capsys.readouterr().out.count("Already done") == 19
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_run_that_is_stopped_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    use_small_model(monkeypatch)
    script = load_script(EXPERIMENTS)
    args = small_args(script, tmp_path, "--tiny", "--row", "1", "2", "3")
    real, calls = app.run_experiment, []

    def stop_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(app, "run_experiment", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        script.main(args)
    assert len(app.Results(tmp_path).rows) == 2
    script.main(args)
    assert len(app.Results(tmp_path).rows) == 3 and len(calls) == 4


def test_rows_of_other_sizes_are_left_out_with_a_word(tmp_path, monkeypatch, capsys):
    use_small_model(monkeypatch)
    script = load_script(EXPERIMENTS)
    options = ("--model", "gpt2-tiny", "--limit", "48", "--num_epochs", "1", "--row", "8", "16")
    script.main(small_args(script, tmp_path, *options))
    assert "Row 8 is left out: it wants gpt2-xl (1558M)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--row must be from 1 to 19, got 20"):
        script.main(small_args(script, tmp_path, "--tiny", "--row", "20"))


def test_the_report_has_a_line_for_each_experiment_and_four_figures(tmp_path, monkeypatch, capsys):
    use_small_model(monkeypatch)
    script = load_script(EXPERIMENTS)
    script.main(small_args(script, tmp_path, "--tiny", "--row", "1", "16", "--seeds", "1", "2"))
    (tmp_path / "README.md").write_text(
        "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n", encoding="utf-8"
    )
    write_report(app.Results(tmp_path))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| 1 | gpt2-tiny |" in text and " ± " in text
    assert text.count("| 2 |") == 2  # seeds
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{name}.svg" for name in ("accuracies", "cost", "curves", "calibration")
    }
    assert table_of(app.Results(tmp_path).rows).count("\n") >= 3


def test_real_scripts_run_in_a_terminal(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            EXPERIMENTS,
            "--tiny",
            "--row",
            "18",
            "--device",
            "cpu",
            "--out",
            tmp_path,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    details = next((tmp_path / "details").iterdir())
    assert json.loads(details.read_text(encoding="utf-8"))["test_labels"]
    done = subprocess.run(
        [sys.executable, EXPERIMENTS, "--no_padding", "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "batch_size must be 1" in done.stderr


def write_reviews(path: Path, count: int = 40) -> Path:
    lines = [f"good film {i},1" if i % 2 else f"bad film {'o' * i},0" for i in range(count)]
    path.write_text("\n".join(["text,label", *lines, "Bad  film ,0"]) + "\n", encoding="utf-8")
    return path


def test_the_four_scripts_of_reviews_fill_one_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    prepare_script = load_script(IMDB / "download_prepare_dataset.py")
    prepare_script.main(str(write_reviews(tmp_path / "mine.csv")), None, str(tmp_path), False)
    assert "1 of which repeat another one" in capsys.readouterr().out
    use_small_model(monkeypatch)
    load_script(IMDB / "train_sklearn_logreg.py").main(str(tmp_path), str(tmp_path))
    gpt = load_script(IMDB / "train_gpt.py")
    args = {"data": str(tmp_path), "out": str(tmp_path), "device": "cpu", "seeds": [1]}
    args |= {"model": "gpt2-tiny", "weights": "pretrained", "context_length": "16"}
    gpt.main(argparse.Namespace(**args, num_epochs=1, compile=False))
    assert [row["model"] for row in app.Results(tmp_path).rows] == [
        "majority class",
        "bag of words, logistic regression",
        "gpt2-tiny",
    ]


def test_more_rows_than_there_are_reviews_are_refused(tmp_path):
    script = load_script(IMDB / "download_prepare_dataset.py")
    with pytest.raises(ValueError, match="are more than the 41 reviews"):
        script.main(str(write_reviews(tmp_path / "mine.csv")), [40, 5, 5], str(tmp_path), False)


def test_missing_reviews_say_which_script_makes_them(tmp_path):
    with pytest.raises(ValueError, match=r"train.csv: run download_prepare_dataset.py first"):
        app.review_splits(tmp_path)


def test_settings_become_options_that_say_the_same():
    script = load_script(EXPERIMENTS)
    settings = Settings(trainable_layers="lora", lora_rank=4, average_embeddings=True, seed=7)
    args = script.parser_of_options().parse_args(app.options_of(settings).split())
    assert app.settings_from(args, seed=7) == replace(settings, lora_alpha=8.0)
