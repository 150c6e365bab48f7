"""Chapter 7: prompts, batches, loss and masks, responses, saving, the scripts, and bad input."""

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llms_from_scratch.app.chat import Chat, converse, show_answer
from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.appendix_e import merge_lora, replace_linear_with_lora
from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel
from llms_from_scratch.ch05 import calc_loss_batch, generate, train_model_simple
from llms_from_scratch.ch07 import (
    PROMPT_STYLES,
    SYNTHETIC_INSTRUCTIONS,
    SYNTHETIC_INSTRUCTIONS_NOTICE,
    InstructionDataset,
    InstructionDatasetWithMasking,
    calc_mean_token_loss,
    check_entries,
    custom_collate_draft_1,
    custom_collate_draft_2,
    custom_collate_fn,
    custom_collate_with_masking_fn,
    download_and_load_file,
    encode_entry,
    extract_response,
    format_input,
    format_input_phi,
    generate_responses,
    load_entries,
    load_finetuned,
    load_instructions,
    merged_state_dict,
    save_finetuned,
    split_data,
)
from llms_from_scratch.data import DownloadError
from llms_from_scratch.data.manifest import ASSETS
from llms_from_scratch.generate import generate as generate_batch
from llms_from_scratch.serving.speaking import Speaker
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "ch07" / "01_main-chapter-code"
CONFIG = BASE_CONFIG | {"context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2}
TOY = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
EOS = 50256
TOKENIZER = get_tokenizer("gpt2")
WITH_INPUT = {"instruction": "Name the animal.", "input": "house, horse", "output": "Horse"}
NO_INPUT = {"instruction": "What is the opposite of 'hot'?", "input": "", "output": "Cold."}


@pytest.fixture
def tokenizer():
    return TOKENIZER


@pytest.fixture
def model():
    torch.manual_seed(123)
    return GPTModel(CONFIG).eval()


def entries(n):
    return [
        {"instruction": f"Add one to {i}.", "input": "", "output": f"The sum is {i + 1}."}
        for i in range(n)
    ]


# --- prompts


def test_prompts_of_both_styles_are_laid_out_as_in_the_book(tokenizer):
    preamble = format_input(NO_INPUT).split("\n")[0]
    ids = [21106, 318, 281, 12064, 326, 8477, 257, 4876, 13]
    ids += [19430, 257, 2882, 326, 20431, 32543, 262, 2581, 13]
    assert tokenizer.encode(preamble) == ids
    assert format_input(NO_INPUT) == f"{preamble}\n\n### Instruction:\n{NO_INPUT['instruction']}"
    assert format_input(WITH_INPUT) == (
        f"{preamble}\n\n### Instruction:\nName the animal.\n\n### Input:\nhouse, horse"
    )
    assert format_input_phi(NO_INPUT) == "<|user|>\nWhat is the opposite of 'hot'?"
    assert format_input_phi(WITH_INPUT) == "<|user|>\nName the animal.\nhouse, horse"
    assert tokenizer.encode("<|user|>") == [27, 91, 7220, 91, 29]
    headers = [style.response_header for style in PROMPT_STYLES.values()]
    assert headers == ["\n\n### Response:\n", "\n<|assistant|>:\n"]


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_the_response_is_found_again_in_the_whole_text(style):
    prompt = PROMPT_STYLES[style].format_input(WITH_INPUT)
    whole = prompt + PROMPT_STYLES[style].response_header + WITH_INPUT["output"]
    assert extract_response(whole, prompt, style) == "Horse"
    assert extract_response(prompt, prompt, style) == ""


def test_an_unknown_prompt_style_is_refused(tokenizer):
    with pytest.raises(ValueError, match="one of .'alpaca', 'phi3'., got 'gpt5'"):
        InstructionDataset([NO_INPUT], tokenizer, prompt_style="gpt5")


# --- data


@pytest.mark.real_data
def test_download_takes_the_real_file_and_keeps_what_is_there(tmp_path):
    path = tmp_path / "instruction-data.json"
    data = download_and_load_file(path, ASSETS["instruction-data"].urls[0])
    assert len(data) == 1100 and path.is_file()
    path.write_text(json.dumps([WITH_INPUT]), encoding="utf-8")
    again = download_and_load_file(str(path), ASSETS["instruction-data"].urls[0])
    assert again == [WITH_INPUT]


def test_without_a_source_the_synthetic_instructions_come_with_a_notice(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("LLMS_FROM_SCRATCH_MIRROR", raising=False)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "instruction-data.json"
    with pytest.warns(UserWarning, match="bundled sample"):
        data = download_and_load_file(path, ASSETS["instruction-data"].urls[0])
    assert len(data) >= 1100
    assert not path.exists()  # so that the real file is got as soon as there is a network
    assert SYNTHETIC_INSTRUCTIONS_NOTICE in capsys.readouterr().out
    assert load_instructions() == (SYNTHETIC_INSTRUCTIONS, data)
    with pytest.raises(DownloadError, match="alpaca_data.json"):  # nothing takes Alpaca's place
        load_instructions("alpaca-52k")


def test_alpaca_and_the_books_data_never_share_a_file():
    names = {ASSETS[name].file_name for name in ("instruction-data", "alpaca-52k")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"instruction": "a",\n}]', "not JSON: .* in line 3, column 1"),
        (b"", "not JSON: .* in line 1, column 1"),
        (b"[]", "at least one entry, got an empty list"),
        (b'{"instruction": "a"}', "must be a list .* got dict"),
        (b'[{"instruction": "a", "input": "", "output": "b"}, 5]', "entry 1 is no dictionary but"),
        (b'[{"instruction": "a", "input": ""}]', "entry 0 has no key 'output'"),
        (b'[{"instruction": "a", "output": "b"}]', "no key 'input' .use \"\" if there is none"),
        (b'[{"instruction": null, "input": "", "output": "b"}]', "'instruction' must be a text"),
        (b'[{"instruction": "caf\xe9"}]', "not UTF-8 text .byte 21"),
        (b"[" * 100_000, "no list of entries: it has lists within lists"),
        (
            b'[{"instruction": "a \\ud83d", "input": "", "output": "b"}]',
            "entry 0: 'instruction' has half of a surrogate pair",
        ),
        (
            b'[{"instruction": "a", "input": "", "output": "b", "check": {"match": "near"}}]',
            'entry 0: "check" must be',
        ),
        (
            b'[{"instruction": "a", "input": "", "output": "b",'
            b' "check": {"match": "exact", "any_of": []}}]',
            'entry 0: "check" must be',
        ),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_entries(path)


def test_bad_sources_are_refused():
    with pytest.raises(FileNotFoundError, match="neither a file nor instruction-data"):
        load_instructions("nowhere.json")
    with pytest.raises(ValueError, match="the data must be a list"):
        check_entries(None)


def test_the_split_takes_the_file_in_order_and_no_part_may_be_empty():
    train, val, test = split_data(list(range(1100)))
    assert (len(train), len(val), len(test)) == (935, 55, 110)
    assert train + test + val == list(range(1100))
    train, val, test = split_data(list(range(52002)))
    assert (len(train), len(val), len(test)) == (44201, 2601, 5200)
    with pytest.raises(ValueError, match="9 entries.* leave none to test"):
        split_data(entries(9))
    with pytest.raises(ValueError, match="leave none to validate"):
        split_data(entries(20), 0.5, 0.5)


# --- the data set and the place where the response begins

TEXTS = st.text(
    st.characters(exclude_categories=("Cs",)) | st.sampled_from("\n \t#<|"), min_size=0, max_size=30
)


@settings(max_examples=200, deadline=None)
@given(instruction=TEXTS, extra=TEXTS, output=TEXTS, style=st.sampled_from(list(PROMPT_STYLES)))
def test_the_prompt_ends_where_tokenizing_once_says(instruction, extra, output, style):
    entry = {"instruction": instruction, "input": extra, "output": output}
    prompt_length, ids = encode_entry(entry, TOKENIZER, style)
    prompt = PROMPT_STYLES[style].format_input(entry)
    header = PROMPT_STYLES[style].response_header
    pieces = TOKENIZER.decode_tokens_bytes(ids)
    assert b"".join(pieces).decode() == prompt + header + output
    size = len(prompt.encode())
    assert len(b"".join(pieces[: prompt_length - 1])) < size  # the last one begins in the prompt
    assert len(b"".join(pieces[:prompt_length])) >= size  # and nothing after it does
    assert EOS not in ids


def test_the_end_token_written_as_text_is_text(tokenizer):
    _, ids = encode_entry(NO_INPUT | {"output": "<|endoftext|>"}, tokenizer)
    assert EOS not in ids and tokenizer.decode(ids).endswith("<|endoftext|>")


def test_items_of_the_data_sets(tokenizer):
    data = [WITH_INPUT, NO_INPUT]
    plain, masked = (
        cls(data, tokenizer) for cls in (InstructionDataset, InstructionDatasetWithMasking)
    )
    assert len(plain) == len(masked) == 2
    for entry, ids, (prompt_length, same_ids) in zip(data, plain, masked, strict=False):
        text = format_input(entry) + "\n\n### Response:\n" + entry["output"]
        assert ids == same_ids == tokenizer.encode(text)
        assert prompt_length == len(tokenizer.encode(format_input(entry)))
        response = ids[prompt_length:]
        assert response[:6] == [198, 198, 21017, 18261, 25, 198]


def test_entries_without_room_for_a_response_are_left_out_and_counted(tokenizer):
    long = NO_INPUT | {"instruction": "word " * 100}
    dataset = InstructionDataset([WITH_INPUT, long, NO_INPUT], tokenizer, allowed_max_length=60)
    assert dataset.num_dropped == 1 and dataset.data == [WITH_INPUT, NO_INPUT]
    assert InstructionDataset([long], tokenizer).num_dropped == 0
    with pytest.raises(ValueError, match="1 given, .*allowed_max_length=60 tokens: raise"):
        InstructionDataset([long], tokenizer, allowed_max_length=60)
    with pytest.raises(ValueError, match="no entry is left: 0 given"):
        InstructionDataset([], tokenizer)


# --- collate functions


def test_toy_batches_of_the_book():
    padded = [[0, 1, 2, 3, 4], [5, 6, EOS, EOS, EOS], [7, 8, 9, EOS, EOS]]
    targets = [[1, 2, 3, 4, EOS], [6, EOS, EOS, EOS, EOS], [8, 9, EOS, EOS, EOS]]
    ignored = [[1, 2, 3, 4, EOS], [6, EOS, -100, -100, -100], [8, 9, EOS, -100, -100]]
    assert custom_collate_draft_1(TOY).tolist() == padded
    assert [t.tolist() for t in custom_collate_draft_2(TOY)] == [padded, targets]
    inputs, labels = custom_collate_fn(TOY)
    assert (inputs.tolist(), labels.tolist()) == (padded, ignored)
    assert inputs.dtype == labels.dtype == torch.long
    assert TOY == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]  # the items are as they were


ROWS = st.lists(st.lists(st.integers(0, 50256), min_size=1, max_size=20), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(batch=ROWS, limit=st.none() | st.integers(1, 25), ignore_index=st.sampled_from([-100, -1]))
def test_collate_never_lies(batch, limit, ignore_index):
    inputs, targets = custom_collate_fn(batch, 777, ignore_index, limit)
    lengths = [len(item[:limit]) for item in batch]
    assert inputs.shape == targets.shape == (len(batch), max(lengths))
    for row, target, item, n in zip(inputs, targets, batch, lengths, strict=True):
        assert row.tolist() == item[:n] + [777] * (max(lengths) - n)
        assert target[: n - 1].tolist() == item[1:n]  # the next token
        assert target[n - 1] == 777  # exactly one end token, also after a cut
        assert (target[n:] == ignore_index).all()  # padding is not learned
    loss = torch.nn.functional.cross_entropy(
        torch.zeros(targets.numel(), 50257), targets.flatten(), ignore_index=ignore_index
    )
    assert loss.item() == pytest.approx(math.log(50257), rel=1e-5)


MASKED_ROWS = st.lists(
    st.lists(st.integers(0, 50255), min_size=2, max_size=20).flatmap(
        lambda ids: st.tuples(st.integers(1, len(ids) - 1), st.just(ids))
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(
    batch=MASKED_ROWS,
    limit=st.none() | st.integers(1, 25),
    ignore_index=st.sampled_from([-100, -1]),
)
def test_masked_collate_never_lies(batch, limit, ignore_index):
    kept = [(n, ids) for n, ids in batch if limit is None or n < limit]
    collate = partial(custom_collate_with_masking_fn, batch, EOS, ignore_index, limit)
    if not kept:
        with pytest.raises(ValueError, match="no response within"):
            collate()
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs, targets = collate()
    dropped = len(batch) - len(kept)
    assert len(caught) == bool(dropped)
    assert not dropped or f"{dropped} of {len(batch)} rows" in str(caught[0].message)
    plain_inputs, plain_targets = custom_collate_fn(
        [ids for _, ids in kept], EOS, ignore_index, limit
    )
    assert torch.equal(inputs, plain_inputs)
    for target, plain, (n, ids) in zip(targets, plain_targets, kept, strict=True):
        assert (target[: n - 1] == ignore_index).all()  # nothing of the prompt is learned
        assert torch.equal(target[n - 1 :], plain[n - 1 :])  # all of the response is
        assert target[n - 1] == ids[n]  # at least one token of it


def test_a_row_without_a_prompt_is_learned_from_its_first_target_on():
    rows = [[1, 2, 3], [4, 5]]
    _, wanted = custom_collate_fn(rows)
    _, targets = custom_collate_with_masking_fn([(0, rows[0]), (1, rows[1])])
    assert torch.equal(targets, wanted)


def test_collate_refuses_what_gives_no_loss():
    for batch, limit, message in (
        ([], None, "at least one row"),
        ([[1], []], None, "each row at least one token"),
        ([[1, 2]], 0, "allowed_max_length must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            custom_collate_fn(batch, allowed_max_length=limit)
    with pytest.raises(ValueError, match="2 of 2 rows .*allowed_max_length=3"):
        custom_collate_with_masking_fn([(3, [1, 2, 3, 4]), (5, [1] * 9)], allowed_max_length=3)


@pytest.mark.real_data
def test_the_mask_of_exercise_7_2(tokenizer):
    _, data = load_instructions()
    train, _, _ = split_data(data)
    assert len(train) == 935
    dataset = InstructionDatasetWithMasking(train, tokenizer)
    torch.manual_seed(123)
    loader = DataLoader(
        dataset, batch_size=8, collate_fn=custom_collate_with_masking_fn, shuffle=True
    )
    for inputs, targets in loader:
        for row, target in zip(inputs, targets, strict=True):
            text = tokenizer.decode(row.tolist()).replace("<|endoftext|>", "")
            learned = tokenizer.decode(target[target != -100].tolist())
            start = text.index("\n\n### Response:\n")
            assert learned == text[start:] + "<|endoftext|>"


# --- loss


def reference_loss(model, batch, mask_prompt):
    """Cross-entropy by hand: each row alone, without padding, one probability after the other."""
    losses = []
    for prompt_length, ids in batch:
        with torch.no_grad():
            probas = torch.softmax(model(torch.tensor([ids]))[0].double(), dim=-1)
        for position, (_, target) in enumerate(pairwise([*ids, EOS])):
            if not mask_prompt or position + 1 >= prompt_length:
                losses.append(-math.log(probas[position, target].item()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_the_loss_equals_one_computed_by_hand(model, tokenizer, mask_prompt):
    batch = list(
        map(InstructionDatasetWithMasking(entries(12)[8:], tokenizer).__getitem__, range(4))
    )
    batch.append(encode_entry(WITH_INPUT, tokenizer))
    if mask_prompt:
        inputs, targets = custom_collate_with_masking_fn(batch)
    else:
        inputs, targets = custom_collate_fn([ids for _, ids in batch])
    expected = reference_loss(model, batch, mask_prompt)
    with torch.no_grad():
        assert calc_loss_batch(inputs, targets, model, "cpu").item() == pytest.approx(
            expected, abs=1e-5
        )
    # In two batches of different lengths, each token still counts the same
    halves = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    assert calc_mean_token_loss(halves, model, "cpu") == pytest.approx(expected, abs=1e-5)


def test_mean_token_loss_honours_the_ignored_index_and_knows_no_batch(model):
    inputs, targets = custom_collate_fn(TOY)
    other = targets.masked_fill(targets == -100, -1)
    expected = calc_mean_token_loss([(inputs, targets)], model, "cpu")
    assert calc_mean_token_loss([(inputs, other)], model, "cpu", ignore_index=-1) == expected
    assert math.isnan(calc_mean_token_loss([], model, "cpu"))


def test_training_of_the_books_package_test(tmp_path, tokenizer):
    data = entries(45)
    collate = partial(custom_collate_fn, device="cpu", allowed_max_length=100)
    train_loader, val_loader = (
        DataLoader(InstructionDataset(part, tokenizer), batch_size=8, collate_fn=collate)
        for part in (data[:15], data[15:30])
    )
    torch.manual_seed(123)
    model = GPTModel(CONFIG | {"qkv_bias": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.1)
    train_losses, val_losses, _ = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        "cpu",
        2,
        3,
        5,
        format_input(data[30]),
        tokenizer,
    )
    assert round(train_losses[0], 1) == round(val_losses[0], 1) == 10.9
    assert train_losses[-1] < train_losses[0]


# --- responses


@pytest.mark.parametrize("lora", [False, True])
def test_batched_responses_are_those_of_one_prompt_at_a_time(tokenizer, lora):
    torch.manual_seed(0)
    model = GPTModel(CONFIG | {"n_layers": 2}).eval()
    with torch.no_grad():
        model.out_head.weight[600:] *= 0.1  # few tokens win
    if lora:
        replace_linear_with_lora(model, rank=2, alpha=4)
        torch.nn.init.normal_(model.trf_blocks[0].att.W_key.lora.B)
    prompts = [tokenizer.encode(format_input(entry)) for entry in (NO_INPUT, WITH_INPUT)]
    prompts += [[1], list(range(118)), list(range(7)), list(range(120)), [5, 6, 7]]

    def one_at_a_time(eos_id):
        for prompt in prompts:
            room = CONFIG["context_length"] - len(prompt)
            ids = generate(model, torch.tensor([prompt]), min(9, room), 120, eos_id=eos_id)
            yield ids[0, len(prompt) :].tolist()

    endless = list(one_at_a_time(eos_id=None))
    assert [len(ids) for ids in endless] == [9, 9, 9, 2, 9, 0, 9]
    for eos_id in (EOS, endless[2][4], endless[4][8], endless[0][0]):
        new_ids = generate_batch(model, prompts, 9, stop_ids=(eos_id,), stop_when_full=True)
        assert new_ids == list(one_at_a_time(eos_id))


def test_responses_end_at_the_end_token_and_keep_the_mode(tokenizer):
    """A stand-in that always writes the header, an answer and the end."""
    model = GPTModel(CONFIG).train()
    script = tokenizer.encode("\n\n### Response:\nYes.") + [EOS]
    lengths = {}

    def scripted(features):  # (b, 1, emb_dim): one hot at the next word of the script
        logits = torch.full((len(features), 1, 50257), -1.0)
        for row in range(len(features)):
            step = lengths[row] = lengths.get(row, -1) + 1
            logits[row, 0, script[step]] = 1.0
        return logits

    model.out_head.forward = scripted
    assert generate_responses(entries(3), model, tokenizer, "cpu") == ["Yes."] * 3
    assert model.training


def test_prompts_that_fill_the_context_get_an_empty_response_and_a_warning(model, tokenizer):
    long = NO_INPUT | {"instruction": "word " * 200}
    with pytest.warns(UserWarning, match="1 of 2 prompts fill the model's context of 120"):
        responses = generate_responses([long, NO_INPUT], model, tokenizer, "cpu", max_new_tokens=2)
    assert responses[0] == "" and len(responses) == 2
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate_batch(model, [[]], 2)


# --- saving


def test_a_saved_model_gives_the_same_logits_and_knows_its_prompt(model, tmp_path):
    save_finetuned(tmp_path, model, CONFIG, "phi3", asset="mine")
    for path in (tmp_path, tmp_path / "model.pth"):
        again, about = load_finetuned(path)
        assert about == {"config": CONFIG, "prompt_style": "phi3", "asset": "mine"}
        ids = torch.arange(9)[None]
        assert torch.equal(again(ids), model(ids)) and not again.training
    with pytest.raises(ValueError, match="prompt style must be"):
        save_finetuned(tmp_path, model, CONFIG, "other")


def test_a_model_with_merged_lora_is_saved_under_the_usual_names(model, tmp_path):
    names = set(model.state_dict())
    replace_linear_with_lora(model, rank=2, alpha=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora.B"):
                parameter.fill_(0.1)
    merge_lora(model)
    assert set(merged_state_dict(model)) == names
    save_finetuned(tmp_path, model, CONFIG, "alpaca")
    again, _ = load_finetuned(tmp_path)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(again(ids), model(ids))


def test_a_pretrained_model_has_no_prompt_style():
    _, about = load_finetuned("gpt2-tiny")
    assert about["prompt_style"] is None and about["config"]["emb_dim"] == 192


# --- the chat


class Scripted(GPTModel):
    """Answers with the tokens of ``script``, each after what came before; or is interrupted."""

    script: list[int] = []
    interrupt_after = None

    def forward(self, in_idx):
        logits = torch.zeros(1, in_idx.shape[1], 50257)
        step = self.steps = getattr(self, "steps", -1) + 1
        if step == self.interrupt_after:
            raise KeyboardInterrupt
        logits[0, -1, self.script[step % len(self.script)]] = 1.0
        return logits


@pytest.fixture
def chat(tokenizer):
    model = Scripted(CONFIG)
    model.script = [*tokenizer.encode("Grüße \U0001f600!"), EOS]
    speaker = Speaker("scripted", model, tokenizer, style=PROMPT_STYLES["alpaca"])
    speaker.stop_ids = frozenset({tokenizer.eot_token})
    return Chat(speaker)


def test_the_chat_prompts_as_in_training_and_streams_whole_characters(chat, tokenizer):
    _, ids = encode_entry(WITH_INPUT, tokenizer)
    asked = chat.speaker.format("Name the animal.\nhouse, horse")
    assert asked + "Horse" == tokenizer.decode(ids)
    pieces = list(chat.answer("Hello?"))
    assert "".join(pieces) == "Grüße \U0001f600!"
    assert len(pieces) > 4 and "\ufffd" not in "".join(pieces)
    assert Speaker("plain", chat.speaker.model, tokenizer).format("Every effort") == "Every effort"


def test_a_chat_goes_on_after_ctrl_c_and_after_a_message_that_is_too_long(chat, capsys):
    messages = iter(["Hello?", "", "word " * 200, "Again!", "/exit", "never read"])
    chat.speaker.model.interrupt_after = 2
    converse(chat, lambda: next(messages))
    printed = capsys.readouterr().out
    assert "[stopped]" in printed
    assert "the model reads at most 120: make it shorter" in printed
    assert next(messages) == "never read"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_chat_ends_quietly(chat, capsys, end):
    def read_message():
        raise end

    converse(chat, read_message)
    assert capsys.readouterr().out == "\n"
    show_answer(chat, "Hello?")
    assert capsys.readouterr().out == "Grüße \U0001f600!\n"


def test_the_command_answers_with_the_style_of_the_checkpoint(model, tmp_path, capsys):
    save_finetuned(tmp_path, model, CONFIG, "phi3")
    assert cli(["chat", str(tmp_path), "--prompt", "Hello?", "--max-new-tokens", "3"]) == 0
    first = capsys.readouterr().out
    other = ["--prompt-style", "alpaca"]
    assert cli(["chat", str(tmp_path), "--prompt", "Hello?", "--max-new-tokens", "3", *other]) == 0
    assert capsys.readouterr().out != first
    for arguments, message in (
        (["nowhere"], "nowhere is neither a known model"),
        ([str(tmp_path), "--max-new-tokens", "0"], "must be at least 1, got 0"),
        ([str(tmp_path), "--temperature", "-1"], "temperature must be 0"),
        ([str(tmp_path), "--device", "abacus"], "device 'abacus' cannot be used"),
    ):
        with pytest.raises(SystemExit) as error:
            cli(["chat", *arguments])
        assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_in_a_real_chat_stops_the_answer_only(tmp_path):
    command = [sys.executable, "-u", "-m", "llms_from_scratch.app.cli", "chat", "gpt2-tiny"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
    )
    process.stdin.write(b"Once upon a time\n")
    process.stdin.flush()
    output = b""
    while len(output.partition(b"You: ")[2]) < 10:  # the answer has begun
        piece = os.read(process.stdout.fileno(), 100)
        assert piece, output
        output += piece
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    rest, _ = process.communicate(b"/exit\n", timeout=60)
    assert process.returncode == 0
    assert b"[stopped]" in rest and b"Traceback" not in rest
    assert b"was not finetuned on instructions" in output


# --- the scripts


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script in this process; gives its exit status, its output and its error messages."""

    def run(name, *arguments, folder):
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *arguments])
        for module in ("previous_chapters", "gpt_instruction_finetuning"):
            monkeypatch.delitem(sys.modules, module, raising=False)  # other chapters have some too
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
            status = 0
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """The folder and the output of a run on data of one's own."""
    folder = tmp_path_factory.mktemp("script")
    data = entries(40)
    data[35]["instruction"] = "word " * 200
    (folder / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    arguments = ["--preset", "tiny", "--data", "mine.json", "--out", "run", "--lora"]
    arguments += ["--prompt-style", "phi3", "--mask-prompt", "--batch-size", "4"]
    command = [sys.executable, str(FOLDER / "gpt_instruction_finetuning.py"), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    return folder, done


def test_script_writes_model_responses_metrics_and_plots(finetuned):
    folder, done = finetuned
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (folder / "run").iterdir()}
    assert written == {
        "adapter",
        "instruction-data-with-response.json",
        "loss-plot.pdf",
        "loss-plot.png",
        "metrics.json",
        "model.pth",
        "settings.json",
    }
    metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == [10, 2, 4] and metrics["asset"] == "mine.json"
    assert (metrics["prompt_style"], metrics["mask_prompt"], metrics["lora"]) == (
        "phi3",
        True,
        True,
    )
    for when in ("before", "after"):
        assert metrics[when]["verifiable"] >= metrics[when]["correct"] >= 0
        assert metrics[when]["test_response_loss"] == pytest.approx(10.9, abs=0.3)
    answered = load_entries(folder / "run" / "instruction-data-with-response.json")
    assert len(answered) == 4 and all(isinstance(e["model_response"], str) for e in answered)
    _, about = load_finetuned(folder / "run")
    assert about["prompt_style"] == "phi3"


def test_a_finished_run_is_neither_replaced_silently_nor_resumed(finetuned, run_script):
    folder, _ = finetuned
    before = {path.name for path in (folder / "run").iterdir()}
    arguments = ["--preset", "tiny", "--data", "mine.json", "--out", "run"]
    for extra, message in (
        ([], "--overwrite replaces it"),
        (["--resume"], "the run in run is finished"),
        (["--resume", "--compare"], "it cannot --resume one"),
    ):
        name = "gpt_instruction_finetuning.py"
        status, _, error = run_script(name, *arguments, *extra, folder=folder)
        assert status == 2 and message in error
    assert {path.name for path in (folder / "run").iterdir()} == before


def test_overwriting_leaves_no_adapter_of_an_earlier_run_beside_the_new_model(
    finetuned, run_script, tmp_path
):
    folder, _ = finetuned
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copyfile(folder / "mine.json", tmp_path / "mine.json")
    arguments = ["--preset", "tiny", "--data", "mine.json", "--out", "run", "--overwrite"]
    name = "gpt_instruction_finetuning.py"
    status, _, error = run_script(name, *arguments, "--learning-rate", "1e30", folder=tmp_path)
    assert status == 1 and "try a lower" in error and list((tmp_path / "run").iterdir()) == []
    status, printed, error = run_script(name, *arguments, folder=tmp_path)
    assert status == 0 and "Wrote the model" in printed, error
    assert (tmp_path / "run/model.pth").is_file() and not (tmp_path / "run/adapter").exists()


def test_a_stopped_finetuning_goes_on_as_if_nothing_had_happened(
    finetuned, run_script, tmp_path, monkeypatch
):
    folder, _ = finetuned
    shutil.copyfile(folder / "mine.json", tmp_path / "mine.json")
    name = "gpt_instruction_finetuning.py"
    arguments = ["--preset", "tiny", "--data", "mine.json", "--out", "run", "--lora"]
    arguments += ["--prompt-style", "phi3", "--mask-prompt", "--batch-size", "4"]
    update = Trainer._update

    def update_and_interrupt(trainer, batches):
        if trainer.progress.step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(trainer, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update_and_interrupt)
        status, printed, error = run_script(name, *arguments, folder=tmp_path)
    assert status == 130 and "Stopped after 2 updates; add --resume" in printed
    assert "then a checkpoint is saved" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pth"]
    other = [*arguments[:-1], "5", "--resume"]  # another batch size
    status, _, error = run_script(name, *other, folder=tmp_path)
    assert status == 2 and "batch_size saved 4, wanted 5" in error
    status, _, error = run_script(name, *arguments, "--resume", folder=tmp_path)
    assert status == 0, error
    one, other = (torch.load(f / "run/model.pth") for f in (folder, tmp_path))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    metrics = [json.loads((f / "run/metrics.json").read_text()) for f in (folder, tmp_path)]
    times = {"seconds": 0, "training_seconds": 0}
    assert {**metrics[0], **times} == {**metrics[1], **times}


def test_another_model_in_the_folder_is_noticed_before_anything_is_read(tmp_path, run_script):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    options = ["--preset", "tiny", "--data", "nowhere.json", "--out", "run"]
    status, _, error = run_script("gpt_instruction_finetuning.py", *options, folder=tmp_path)
    assert status == 2 and "holds another model (config.json)" in error


def test_responses_are_judged_by_rules_without_a_server(finetuned, run_script):
    folder, _ = finetuned
    arguments = ["--file_path", "run/instruction-data-with-response.json", "--api", "rules"]
    status, printed, _ = run_script("ollama_evaluate.py", *arguments, folder=folder)
    assert status == 0
    assert re.match(r"A program can check \d+ of 4 answers; \d+ of them are right", printed)
    arguments = [*arguments[:2], "--api", "rouge", "--out", "rouge.json"]
    status, printed, _ = run_script("ollama_evaluate.py", *arguments, folder=folder)
    assert status == 0
    summary = json.loads((folder / "rouge.json").read_text(encoding="utf-8"))
    assert f"of 4 responses: {summary['mean_rouge_l']:.3f}" in printed
    with_no_key = ["--file_path", "mine.json", "--api"]
    for api in ("rules", "rouge"):
        status, _, error = run_script("ollama_evaluate.py", *with_no_key, api, folder=folder)
        assert status == 2 and "no text under the key 'model_response'" in error


def test_the_judges_script_says_how_to_start_a_server(tmp_path, run_script):
    data = [NO_INPUT | {"model_response": "Cold."}]
    (tmp_path / "answers.json").write_text(json.dumps(data), encoding="utf-8")
    for url, message in (("http://127.0.0.1:9", "`ollama serve`"), ("gpu-box", "must begin with")):
        status, _, error = run_script(
            "ollama_evaluate.py", "--file_path", "answers.json", "--url", url, folder=tmp_path
        )
        assert status == 2 and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.json"], "neither a file nor instruction-data"),
        (["--data", "few.json"], "9 entries, split by 0.85 and 0.1, leave none to test"),
        (["--data", "bad.json"], "entry 1 has no key 'output'"),
        (["--data", "long.json"], "each prompt fills allowed_max_length=120"),
        (["--data", "good.json", "--epochs", "0"], "num_epochs must be positive, got 0"),
        (["--data", "nowhere.json", "--batch-size", "0"], "batch_size must be positive, got 0"),
        (["--learning-rate", "nan"], "learning_rate must be positive, got nan"),
        (["--out", ""], "--out is empty"),
        (["--data", "good.json", "--batch-size", "64"], "do not fill a single batch"),
    ],
)
def test_script_refuses_what_cannot_work(tmp_path, run_script, arguments, message):
    long = [NO_INPUT | {"instruction": "word " * 200}] * 40
    contents = {"few": entries(9), "long": long, "good": entries(40)}
    contents["bad"] = [NO_INPUT, {"instruction": "a", "input": ""}]
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    options = ["--preset", "tiny", "--out", "run", *arguments]
    status, _, error = run_script("gpt_instruction_finetuning.py", *options, folder=tmp_path)
    assert status == 2 and message in error


def test_each_exercise_changes_one_thing_and_has_a_folder_of_its_own(
    tmp_path, monkeypatch, run_script
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "previous_chapters", raising=False)
    main = runpy.run_path(str(FOLDER / "exercise_experiments.py"))["main"]
    runs = []
    monkeypatch.setitem(
        main.__globals__, "finetune", lambda settings, **options: runs.append((settings, options))
    )
    for changes in ({}, {"phi3_prompt": True}, {"mask_instructions": True}, {"lora": True}):
        main(**changes)
    main(alpaca52k=True)
    main(mask_instructions=True, phi3_prompt=True)
    seen = [(s.prompt_style, s.mask_prompt, s.lora, options["out"].name) for s, options in runs]
    assert seen == [
        ("alpaca", False, False, "baseline"),
        ("phi3", False, False, "phi3-prompt"),
        ("alpaca", True, False, "mask-instructions"),
        ("alpaca", False, True, "lora"),
        ("alpaca", False, False, "alpaca52k"),
        ("phi3", True, False, "mask-instructions-phi3-prompt"),
    ]
    alpaca, options = runs[4]
    assert (alpaca.batch_size, alpaca.max_length, options["data"]) == (4, 512, "alpaca-52k")
    monkeypatch.delitem(sys.modules, "gpt_instruction_finetuning")
    status, _, error = run_script(
        "exercise_experiments.py", "--exercise_solution", "alpaca_52k", folder=tmp_path
    )
    assert status == 2 and "alpaca_data.json" in error  # nothing takes Alpaca's place
