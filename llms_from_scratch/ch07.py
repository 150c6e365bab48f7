"""Chapter 7: finetuning a GPT to follow instructions.

An entry is a dictionary with the texts "instruction", "input" (may be empty) and "output".
Shapes: b = batch size, num_tokens = length of the longest row of a batch.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils.data import Dataset
from tqdm import tqdm

from llms_from_scratch.ch05 import evaluating, take_batches
from llms_from_scratch.data import ASSETS, find_asset, resolve
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.data.http import download
from llms_from_scratch.generate import generate
from llms_from_scratch.judge import (
    JudgeError,
    JudgeUnavailableError,
    answer_check,
    ask_all,
    check_if_running,
    is_correct,
    normalize,
    parse_score,
    query_model,
    query_openai,
    rouge_l,
    score_verifiable,
    token_f1,
)
from llms_from_scratch.saving import (
    describe_model,
    merged_state_dict,
    new_model,
    plain_value,
    read_settings,
)
from llms_from_scratch.weights.chat_formats import TurnFormat, end_of_text_id
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained
from llms_from_scratch.weights.saved_tokenizers import describe_tokenizer, write_tokenizer

# Judging answers, and generating many at once, are in modules of their own
__all__ = [
    "CHAT",
    "IGNORE_INDEX",
    "PAD_TOKEN_ID",
    "PROMPT_STYLES",
    "SYNTHETIC_INSTRUCTIONS",
    "SYNTHETIC_INSTRUCTIONS_NOTICE",
    "InstructionDataset",
    "InstructionDatasetWithMasking",
    "JudgeError",
    "JudgeUnavailableError",
    "Judgement",
    "PromptStyle",
    "answer_check",
    "calc_mean_token_loss",
    "check_any_left",
    "check_entries",
    "check_if_running",
    "custom_collate_draft_1",
    "custom_collate_draft_2",
    "custom_collate_fn",
    "custom_collate_with_masking_fn",
    "download_and_load_file",
    "encode_entry",
    "end_id",
    "extract_response",
    "find_prompt_style",
    "format_input",
    "format_input_phi",
    "generate_model_scores",
    "generate_responses",
    "is_correct",
    "judge_prompt",
    "judge_responses",
    "load_entries",
    "load_finetuned",
    "load_instructions",
    "merged_state_dict",
    "normalize",
    "open_finetuned",
    "parse_score",
    "query_model",
    "query_openai",
    "rouge_l",
    "rows_with_response",
    "save_finetuned",
    "score_verifiable",
    "split_data",
    "summarize_judgements",
    "token_f1",
]

PAD_TOKEN_ID = 50256  # GPT-2's <|endoftext|>: ends a response, and fills rows up
IGNORE_INDEX = -100  # targets that cross_entropy leaves out
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 cannot
SYNTHETIC_INSTRUCTIONS = "synthetic instructions"
SYNTHETIC_INSTRUCTIONS_NOTICE = (
    "NOTICE: these are the bundled synthetic instructions; results differ from the book's."
)

# --- Data (section 7.2)


def download_and_load_file(file_path: str | Path, url: str) -> list[dict]:
    """The entries of a JSON file, which is downloaded to ``file_path`` unless it is there.

    A file from a known address is checked by its hash. Without a network, the bundled synthetic
    instructions take its place, and a notice says so. Raises ``DownloadError`` if there is nothing
    to take its place, and ``ValueError`` for a file that does not hold entries.
    """
    file_path = Path(file_path)
    if file_path.exists():
        return load_entries(file_path)
    for asset in ASSETS.values():
        if url in asset.urls:
            found = resolve(asset.name, target=file_path)
            if found.source == "sample":
                print(SYNTHETIC_INSTRUCTIONS_NOTICE)
            return load_entries(found.path)
    return load_entries(download([url], file_path, check=load_entries))


def load_instructions(source: str | Path = "instruction-data") -> tuple[str, list[dict]]:
    """Entries, and what they are: of a data set ("instruction-data", "alpaca-52k") or a file."""
    if str(source) not in ASSETS:
        if not Path(source).is_file():
            raise FileNotFoundError(f"{source} is neither a file nor instruction-data, alpaca-52k")
        return Path(source).name, load_entries(source)
    asset = find_asset(str(source))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notice says the same, shorter
        found = resolve(asset.name)
    if found.source != "sample":
        return asset.name, load_entries(found.path)
    print(SYNTHETIC_INSTRUCTIONS_NOTICE)
    return SYNTHETIC_INSTRUCTIONS, load_entries(found.path)


def load_entries(path: str | Path) -> list[dict]:
    """Read a JSON list of entries; ``ValueError`` names the place of what is wrong with it."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it so") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is no list of entries: it has lists within lists") from None
    return check_entries(entries, str(path))


def check_entries(entries, what: str = "the data") -> list[dict]:
    """Return the entries if they are a list of at least one, each with all that it needs.

    Otherwise a ``ValueError`` names the first bad entry, counted from 0, and its key.
    """
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if entries == [] else type(entries).__name__
        raise ValueError(f"{what} must be a list with at least one entry, got {found}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{what}: entry {i} is no dictionary but {entry!r:.60}")
        for key in ("instruction", "input", "output"):
            if key not in entry:
                hint = ' (use "" if there is none)' if key == "input" else ""
                raise ValueError(f"{what}: entry {i} has no key {key!r}{hint}: {entry!r:.60}")
            if not isinstance(entry[key], str):
                got = repr(entry[key])
                raise ValueError(f"{what}: entry {i}: {key!r} must be a text, got {got:.60}")
            if HALF_A_PAIR.search(entry[key]):
                raise ValueError(
                    f"{what}: entry {i}: {key!r} has half of a surrogate pair, which is no "
                    f"character: {entry[key]!a:.60}"
                )
        _check_check(entry.get("check"), f"{what}: entry {i}")
    return entries


def _check_check(check, where: str) -> None:
    if check is None:
        return
    is_good = isinstance(check, dict) and check.get("match") in ("exact", "contains")
    texts = check.get("any_of") if is_good else None
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(
            f'{where}: "check" must be {{"match": "exact" or "contains", "any_of": [texts]}}, '
            f"got {check!r:.80}"
        )


def split_data(
    data: list[dict], train_frac: float = 0.85, test_frac: float = 0.1
) -> tuple[list[dict], list[dict], list[dict]]:
    """The first 85 % to train, the next 10 % to test and the rest to validate, in file order.

    Returned as ``(train_data, val_data, test_data)``; ``ValueError`` if one of them is empty.
    """
    train_end = int(len(data) * train_frac)
    test_end = train_end + int(len(data) * test_frac)
    parts = data[:train_end], data[test_end:], data[train_end:test_end]
    for name, part in zip(("train", "validate", "test"), parts, strict=True):
        if not part:
            raise ValueError(
                f"{len(data)} entries, split by {train_frac} and {test_frac}, leave none to {name}"
            )
    return parts


# --- Prompts (section 7.2, exercise 7.1)


def format_input(entry: dict) -> str:
    """An entry as a prompt in the style of Stanford Alpaca, without the response (section 7.2)."""
    instruction_text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


def format_input_phi(entry: dict) -> str:
    """An entry as a prompt in the style of Phi-3, which is much shorter (exercise 7.1)."""
    input_text = f"\n{entry['input']}" if entry["input"] else ""
    return f"<|user|>\n{entry['instruction']}{input_text}"


@dataclass(frozen=True)
class PromptStyle:
    """How an entry becomes text: the prompt, and what stands between it and the response."""

    format_input: Callable[[dict], str]
    response_header: str


PROMPT_STYLES = {
    "alpaca": PromptStyle(format_input, "\n\n### Response:\n"),
    "phi3": PromptStyle(format_input_phi, "\n<|assistant|>:\n"),
}


CHAT = "chat"  # in settings: the chat template that the model came with


def find_prompt_style(name: str) -> PromptStyle:
    if name not in PROMPT_STYLES:
        raise ValueError(f"the prompt style must be one of {tuple(PROMPT_STYLES)}, got {name!r}")
    return PROMPT_STYLES[name]


def extract_response(response_text: str, input_text: str, prompt_style: str = "alpaca") -> str:
    """The response alone, of a generated text that begins with its prompt (section 7.7)."""
    header = find_prompt_style(prompt_style).response_header
    return response_text[len(input_text) :].replace(header.strip(), "").strip()


def end_id(tokenizer, prompt_style: str | TurnFormat = "alpaca") -> int:
    """The token that ends a response: ``pad_token_id`` for the functions that make batches.

    That is the end of a text, or for a chat format (``Pretrained.chat``) the end of a turn.
    """
    if isinstance(prompt_style, TurnFormat):
        return prompt_style.mark(prompt_style.stops[0])
    return end_of_text_id(tokenizer)


# --- Batches (section 7.3)


def encode_entry(entry: dict, tokenizer, prompt_style="alpaca") -> tuple[int, list[int]]:
    """The number of tokens of the prompt, and the token ids of prompt and response.

    The text is tokenized once. A token belongs to the prompt if its first byte does, so no token
    after the prompt's end carries any part of it. There is no end token yet. Instead of the name of
    a style, the chat format of a pretrained model (``Pretrained.chat``) may make the prompt.
    """
    if not isinstance(prompt_style, str):
        prompt_ids = prompt_style.encode_instruction(entry["instruction"], entry["input"])
        return len(prompt_ids), prompt_ids + tokenizer.encode_ordinary(entry["output"])
    style = find_prompt_style(prompt_style)
    prompt = style.format_input(entry)
    token_ids = tokenizer.encode_ordinary(prompt + style.response_header + entry["output"])
    lengths = (len(token) for token in tokenizer.decode_tokens_bytes(token_ids))
    starts = list(accumulate(lengths, initial=0))[:-1]  # the byte at which each token starts
    prompt_size = len(prompt.encode("utf-8"))
    return sum(start < prompt_size for start in starts), token_ids


class InstructionDataset(Dataset):
    """Entries as lists of token ids, prompt and response without end token (section 7.3).

    If ``allowed_max_length`` is given, entries whose prompt alone has that many tokens are left
    out: nothing of their response would be learned. ``num_dropped`` counts them.
    """

    def __init__(self, data, tokenizer, prompt_style="alpaca", allowed_max_length=None):
        self.data, self.encoded_texts, self.prompt_lengths = [], [], []
        for entry in data:
            prompt_length, token_ids = encode_entry(entry, tokenizer, prompt_style)
            if allowed_max_length is None or prompt_length < allowed_max_length:
                self.data.append(entry)
                self.encoded_texts.append(token_ids)
                self.prompt_lengths.append(prompt_length)
        self.num_dropped = len(data) - len(self.data)
        check_any_left(self, allowed_max_length)

    def __getitem__(self, index):
        return self.encoded_texts[index]

    def __len__(self):
        return len(self.data)


def check_any_left(dataset: Dataset, allowed_max_length: int | None) -> None:
    """Raise ``ValueError`` for a dataset without entries."""
    if not dataset.data:
        raise ValueError(
            f"no entry is left: {dataset.num_dropped} given, and each prompt fills "
            f"allowed_max_length={allowed_max_length} tokens: raise the limit"
        )


class InstructionDatasetWithMasking(InstructionDataset):
    """Like ``InstructionDataset``, but items are ``(prompt_length, token_ids)`` (exercise 7.2)."""

    def __getitem__(self, index):
        return self.prompt_lengths[index], self.encoded_texts[index]


def custom_collate_draft_1(batch, pad_token_id=PAD_TOKEN_ID, device="cpu"):
    """Rows of token ids, padded to the longest of them: inputs (b, num_tokens) (section 7.3)."""
    batch_max_length = max(len(item) for item in batch)
    inputs_lst = []
    for item in batch:
        padding = [pad_token_id] * (batch_max_length - len(item))
        inputs_lst.append(torch.tensor(item + padding))
    return torch.stack(inputs_lst).to(device)


def custom_collate_draft_2(batch, pad_token_id=PAD_TOKEN_ID, device="cpu"):
    """Inputs and targets, both (b, num_tokens); a target is the next token (section 7.3).

    The first padding token of a target row teaches the model to end its response.
    """
    batch_max_length = max(len(item) for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        padding = [pad_token_id] * (batch_max_length - len(item))
        inputs_lst.append(torch.tensor(item + padding))
        targets_lst.append(torch.tensor(item[1:] + [pad_token_id] + padding))
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)


def custom_collate_fn(
    batch,
    pad_token_id=PAD_TOKEN_ID,
    ignore_index=IGNORE_INDEX,
    allowed_max_length=None,
    device="cpu",
):
    """Inputs and targets, both (b, num_tokens), with padding that is not learned (section 7.3).

    Each target row is the next tokens, one end token (``pad_token_id``), and ``ignore_index`` for
    the rest. A row that is longer than ``allowed_max_length`` is cut before its end token is
    added, so every row has one. Raises ``ValueError`` for an empty batch or row.
    """
    if allowed_max_length is not None and allowed_max_length < 1:
        raise ValueError(f"allowed_max_length must be at least 1, got {allowed_max_length}")
    if not batch or not all(len(item) for item in batch):
        raise ValueError("a batch needs at least one row, and each row at least one token")
    batch = [item[:allowed_max_length] for item in batch]
    batch_max_length = max(len(item) for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        num_padding = batch_max_length - len(item)
        inputs = item + [pad_token_id] * num_padding
        targets = item[1:] + [pad_token_id] + [ignore_index] * num_padding
        inputs_lst.append(torch.tensor(inputs))
        targets_lst.append(torch.tensor(targets))
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)


def custom_collate_with_masking_fn(
    batch,
    pad_token_id=PAD_TOKEN_ID,
    ignore_index=IGNORE_INDEX,
    allowed_max_length=None,
    device="cpu",
):
    """``custom_collate_fn`` for items ``(prompt_length, token_ids)``: no prompt is learned (7.2).

    Rows of whose response ``allowed_max_length`` leaves nothing are dropped, with a warning.
    ``InstructionDataset`` can drop them beforehand.
    """
    kept = rows_with_response(batch, allowed_max_length)
    inputs, targets = custom_collate_fn(
        [item for _, item in kept], pad_token_id, ignore_index, allowed_max_length, device
    )
    for row, (prompt_length, _) in zip(targets, kept, strict=True):
        row[: max(prompt_length - 1, 0)] = ignore_index  # targets are one token ahead of inputs
    return inputs, targets


def rows_with_response(batch, allowed_max_length=None) -> list[tuple[int, list[int]]]:
    """Those of the items ``(prompt_length, token_ids)`` of whose response something is left.

    A warning says how many are not; ``ValueError`` if none is left.
    """
    kept = [
        (prompt_length, item)
        for prompt_length, item in batch
        if prompt_length < len(item[:allowed_max_length])
    ]
    if len(kept) < len(batch):
        message = (
            f"{len(batch) - len(kept)} of {len(batch)} rows have no response within "
            f"allowed_max_length={allowed_max_length} tokens"
        )
        if not kept:
            raise ValueError(f"{message}: raise the limit, or leave such entries out")
        warnings.warn(f"{message}; they are dropped", stacklevel=3)
    return kept


# --- Loss and responses (sections 7.6 and 7.7)


def calc_mean_token_loss(
    data_loader: Iterable,
    model: nn.Module,
    device: torch.device | str,
    ignore_index: int = IGNORE_INDEX,
) -> float:
    """Mean cross-entropy over all targets of a loader that are not ``ignore_index``.

    Each token counts the same, whatever the length of its batch; NaN if there is none.
    """
    total, num_targets = 0.0, 0
    with evaluating(model):
        for input_batch, target_batch in take_batches(data_loader):
            targets = target_batch.to(device).flatten()
            logits = model(input_batch.to(device)).flatten(0, 1)  # (b * num_tokens, vocab_size)
            total += nn.functional.cross_entropy(
                logits, targets, ignore_index=ignore_index, reduction="sum"
            ).item()
            num_targets += (targets != ignore_index).sum().item()
    return total / num_targets if num_targets else math.nan


def generate_responses(
    entries: list[dict],
    model: nn.Module,
    tokenizer,
    device: torch.device | str,
    prompt_style: str | TurnFormat = "alpaca",
    max_new_tokens: int = 256,
    batch_size: int = 16,
    progress: bool = False,
) -> list[str]:
    """The model's response to each entry, the most probable token at a time (section 7.7).

    ``prompt_style`` is the name of a style, or the chat format of a model (``Pretrained.chat``). A
    prompt that fills the model's context gets an empty response, and a warning counts them.
    """
    prompts = [_encode_prompt(entry, tokenizer, prompt_style) for entry in entries]
    context_length = model.cfg["context_length"]
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < context_length]
    if len(fitting) < len(prompts):
        warnings.warn(
            f"{len(prompts) - len(fitting)} of {len(prompts)} prompts fill the model's context of "
            f"{context_length} tokens: their responses are empty",
            stacklevel=2,
        )
    fitting.sort(key=lambda i: len(prompts[i]))  # rows of similar length need little padding
    responses = [""] * len(entries)
    stop_ids = {end_id(tokenizer, prompt_style)}
    if isinstance(prompt_style, TurnFormat):
        stop_ids |= prompt_style.stop_ids
    with tqdm(total=len(fitting), desc="responses", disable=not progress) as bar:
        for start in range(0, len(fitting), batch_size):
            chosen = fitting[start : start + batch_size]
            new_ids = generate(
                model.to(device),
                [prompts[i] for i in chosen],
                max_new_tokens,
                stop_ids=stop_ids,
                stop_when_full=True,
            )
            for i, token_ids in zip(chosen, new_ids, strict=True):
                text = tokenizer.decode(token_ids)
                is_chat = isinstance(prompt_style, TurnFormat)
                responses[i] = text.strip() if is_chat else extract_response(text, "", prompt_style)
            bar.update(len(chosen))
    return responses


def _encode_prompt(entry: dict, tokenizer, prompt_style: str | TurnFormat) -> list[int]:
    if isinstance(prompt_style, TurnFormat):
        return prompt_style.encode_instruction(entry["instruction"], entry["input"])
    return tokenizer.encode_ordinary(find_prompt_style(prompt_style).format_input(entry))


# --- A language model as judge (section 7.8); rules that judge are in judge.py


def judge_prompt(entry: dict, response: str) -> str:
    """The question to a judge: how good, from 0 to 100, is the response to this entry?"""
    return (
        f"A model was given this task: `{format_input(entry)}`\n"
        f"A correct response is: `{entry['output']}`\n"
        f"The model's response is: `{response}`\n"
        "Rate the model's response from 0 to 100, where 100 is the best score. "
        "Answer with one integer number and nothing else."
    )


@dataclass(frozen=True)
class Judgement:
    """What came of one response: ``outcome`` is "scored", "empty", "unparsable" or "failed".

    An empty response gets 0 without a question to the judge; "failed" means that the server gave
    no answer. ``answer`` is the judge's own text, or the error.
    """

    outcome: str
    score: int | None
    answer: str


def judge_responses(
    json_data: list[dict],
    json_key: str,
    ask: Callable[[str], str],
    path: str | Path | None = None,
    workers: int = 1,
    about: str = "",
    progress: bool = True,
) -> list[Judgement]:
    """Have each response, ``entry[json_key]``, judged by ``ask``, a function like ``query_model``.

    ``workers`` questions are asked at a time. With ``path``, each answer is kept in that file as
    soon as it is there, and not asked for again; ``about`` says who judges (see ``ask_all``).
    Raises ``ValueError`` if an entry has no such key, and ``JudgeUnavailableError`` if there is no
    judge at all; any other failure concerns one response only.
    """
    for i, entry in enumerate(json_data):
        if not isinstance(entry.get(json_key), str):
            raise ValueError(f"entry {i} has no text under the key {json_key!r}")
    judged = [entry for entry in json_data if entry[json_key].strip()]
    prompts = [judge_prompt(entry, entry[json_key]) for entry in judged]
    answers = iter(ask_all(prompts, ask, path, workers, progress, about))
    return [
        judgement_of(next(answers)) if entry[json_key].strip() else Judgement("empty", 0, "")
        for entry in json_data
    ]


def judgement_of(answer: str | JudgeError) -> Judgement:
    """What a judge's answer, or the lack of one, means for a response."""
    if isinstance(answer, JudgeError):
        return Judgement("failed", None, str(answer))
    score = parse_score(answer)
    return Judgement("unparsable" if score is None else "scored", score, answer)


def summarize_judgements(judgements: list[Judgement]) -> dict:
    """Count the outcomes; give the mean score, and between what it would lie with all responses.

    ``mean`` is over what has a score (``None`` without any). ``lowest_mean`` and ``highest_mean``
    count each of the others as 0 and as 100.
    """
    scores = [j.score for j in judgements if j.score is not None]
    missing = len(judgements) - len(scores)
    counts = {
        outcome: sum(j.outcome == outcome for j in judgements)
        for outcome in ("scored", "empty", "unparsable", "failed")
    }
    total = len(judgements)
    return {
        "responses": total,
        **counts,
        "mean": sum(scores) / len(scores) if scores else None,
        "lowest_mean": sum(scores) / total if total else None,
        "highest_mean": (sum(scores) + 100 * missing) / total if total else None,
    }


def generate_model_scores(
    json_data: list[dict],
    json_key: str,
    model: str = "llama3",
    ask: Callable[[str], str] | None = None,
) -> list[int]:
    """The scores that a judge gives to the responses ``entry[json_key]`` (section 7.8).

    The judge is a model of the Ollama server on this machine, or ``ask``. The list has no place for
    responses without a clear score; their number and the judge's words are printed.
    """
    judgements = judge_responses(json_data, json_key, ask or partial(query_model, model=model))
    for i, judgement in enumerate(judgements):
        if judgement.score is None:
            print(f"Entry {i}, {judgement.outcome}: {judgement.answer!r:.100}")
    scores = [j.score for j in judgements if j.score is not None]
    print(f"{len(scores)} of {len(judgements)} responses have a score.")
    return scores


# --- Saving


# Files that ``load_pretrained`` looks for before ``model.pth`` and ``settings.json``
OTHER_MODEL_FILES = ("model.safetensors", "model.ckpt.index", "config.json", "hparams.json")


def check_folder(folder: str | Path) -> None:
    """Raise ``ValueError`` if a folder holds a model that would be read in place of ours."""
    for name in OTHER_MODEL_FILES:
        if (Path(folder) / name).exists():
            raise ValueError(f"{folder} holds another model ({name}): choose another folder")


def save_finetuned(
    folder: str | Path,
    model: nn.Module,
    config: dict,
    prompt_style: str,
    *,
    base: Pretrained | None = None,
    **about,
) -> None:
    """Write ``model.pth`` and, beside it, ``settings.json``: what it is and how to prompt it.

    The model may be of any architecture. ``base`` is the pretrained model that was finetuned: its
    tokenizer, unless that is GPT-2's, is written too. ``prompt_style`` is ``CHAT`` if the prompts
    were those of the base's chat template, which then is kept. ``about`` may say more, for example
    which data the model was trained on. LoRA layers must be merged (``merge_lora``). Raises
    ``ValueError``, before anything is written, for what could not be read again, and for a folder
    with another model, which would be read in its place.
    """
    folder = Path(folder)
    check_folder(folder)
    about_base = _describe_base(base, prompt_style)
    tensors = merged_state_dict(model)
    settings = {**about, "prompt_style": prompt_style, **about_base}
    settings |= describe_model(model, tensors, config)
    settings = plain_value(settings, "settings", for_json=True)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.pth") as temporary:
        torch.save(tensors, temporary)
    if "tokenizer" in settings:
        write_tokenizer(folder / "tokenizer.json", base.tokenizer)
    with atomic_write(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _describe_base(base: Pretrained | None, prompt_style: str) -> dict:
    """What settings say of the pretrained model: its tokenizer, end tokens, and chat template."""
    is_chat = prompt_style == CHAT
    if not is_chat:
        find_prompt_style(prompt_style)
    elif base is None or base.chat is None:
        raise ValueError(f"the prompt style {CHAT!r} needs a base with a chat template")
    described = describe_tokenizer(base.tokenizer) if base else None
    if described is None and not is_chat:
        return {}
    ends = base.stop_ids if is_chat else base.eos_ids | {end_id(base.tokenizer)}
    found = {"tokenizer": described, "eos_ids": sorted(ends)}
    found["template"] = base.template if is_chat else None
    return {key: value for key, value in found.items() if value is not None}


def load_finetuned(path: str | Path) -> tuple[nn.Module, dict]:
    """A model in evaluation mode, and its settings, from what ``save_finetuned`` wrote.

    ``path`` is the folder or the file in it. ``settings["prompt_style"]`` is ``None`` for a model
    that was not finetuned on instructions; see ``load_pretrained`` for the formats and errors.
    Raises ``ValueError`` too if the settings are damaged.
    """
    loaded, settings = open_finetuned(path)
    return loaded.model, settings


def open_finetuned(path: str | Path) -> tuple[Pretrained, dict]:
    """What ``load_finetuned`` reads, with the tokenizer and the chat format of the model."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    settings = {"prompt_style": None}
    if Path(path).exists() and (folder / "settings.json").is_file():  # not so for "gpt2-tiny"
        is_described = any((folder / name).exists() for name in OTHER_MODEL_FILES)
        settings |= read_settings(folder / "settings.json", () if is_described else ("config",))
    loaded = load_pretrained(path, lambda config: new_model(settings, config))
    return loaded, {"config": loaded.config} | settings
