"""Finetune a pretrained GPT to follow instructions, as in chapter 7.

Examples:
    python gpt_instruction_finetuning.py                  # GPT-2 medium, or the bundled GPT
    python gpt_instruction_finetuning.py --preset tiny    # a very small random GPT: seconds
    python gpt_instruction_finetuning.py --preset word-tasks  # what the bundled GPT can learn
    python gpt_instruction_finetuning.py --prompt-style phi3 --mask-prompt
    python gpt_instruction_finetuning.py --data my-entries.json --lora --out runs/mine
    python gpt_instruction_finetuning.py --compare        # three seeds, as a Markdown table
    python gpt_instruction_finetuning.py --resume         # after Ctrl-C: goes on where it was
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader
from tqdm import tqdm

from llms_from_scratch.app.run_folder import (
    CHECKPOINT,
    add_run_options,
    clear_run_folder,
    default_folder,
    hash_of_text,
    open_run_folder,
)
from llms_from_scratch.app.script_tools import pick_device, short_errors, writable_folder
from llms_from_scratch.appendix_d import learning_rate
from llms_from_scratch.appendix_e import merge_lora, replace_linear_with_lora, save_lora
from llms_from_scratch.ch04 import BASE_CONFIG, model_configs
from llms_from_scratch.ch05 import choose_pretrained, load_pretrained, plot_losses
from llms_from_scratch.ch07 import (
    CHAT,
    SYNTHETIC_INSTRUCTIONS,
    SYNTHETIC_INSTRUCTIONS_NOTICE,
    InstructionDataset,
    InstructionDatasetWithMasking,
    answer_check,
    calc_mean_token_loss,
    check_folder,
    custom_collate_fn,
    custom_collate_with_masking_fn,
    end_id,
    generate_responses,
    load_instructions,
    save_finetuned,
    score_verifiable,
    split_data,
    token_f1,
)
from llms_from_scratch.data import SAMPLES
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.judge import score_by_kind
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.weights.pretrained import BUNDLED_NAME, Pretrained
from previous_chapters import GPTModel

DEFAULT_MODEL = "gpt2-medium (355M)"
TINY_CONFIG = BASE_CONFIG | {"context_length": 120, "emb_dim": 12, "n_layers": 1, "n_heads": 2}
TINY_ROWS = 10  # of each part of the data
WORD_TASKS = {  # what other options do not say, with --preset word-tasks
    "model": BUNDLED_NAME,
    "data": str(SAMPLES / "word-tasks-synthetic.json"),
    "epochs": 3,
    "learning_rate": 5e-4,
    "mask_prompt": True,
}
LORA_RANK = LORA_ALPHA = 16
RESULTS = (
    CHECKPOINT,
    "model.pth",
    "settings.json",
    "tokenizer.json",
    "metrics.json",
    "instruction-data-with-response.json",
    "loss-plot.pdf",
    "loss-plot.png",
    "adapter",
)


@dataclass
class Settings:
    """How to train; the defaults are the book's, and ``None`` is chosen by the model."""

    num_epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    max_length: int = 1024  # tokens of an entry; never more than the model's context
    prompt_style: str | None = None
    mask_prompt: bool = False
    schedule: str = "constant"  # of the learning rate; or "cosine", with warmup and clipping
    dtype: str = "float32"  # of the products of matrices; or "bfloat16", which is faster
    lora: bool = False
    max_new_tokens: int | None = None  # of a response
    eval_freq: int | None = None  # updates between two evaluations

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded; None is no setting."""
        for name in ("num_epochs", "learning_rate", "batch_size", "max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")

    def complete(self, chosen: Pretrained) -> None:
        """Fill in what suits the model: its own chat template, if it has one."""
        bundled = chosen.name == BUNDLED_NAME
        if self.prompt_style is None:
            self.prompt_style = CHAT if chosen.chat else "alpaca"
        if self.num_epochs is None:
            self.num_epochs = 2
        if self.learning_rate is None:
            self.learning_rate = 1e-3 if bundled else 5e-5
        if self.max_new_tokens is None:
            self.max_new_tokens = 48 if bundled else 256
        if self.eval_freq is None:
            self.eval_freq = 20 if bundled else 5

    def identify_run(self) -> dict:
        """What must be the same when a run is resumed; it may become longer."""
        free = ("num_epochs", "max_new_tokens")
        return {name: value for name, value in vars(self).items() if name not in free}


def main(
    settings: Settings,
    *,
    model_name: str = DEFAULT_MODEL,
    data: str = "instruction-data",
    device: str = "auto",
    seed: int = 123,
    out: str | Path = "runs/gpt_instruction_finetuning",
    preset: str = "book",
    resume: bool = False,
    overwrite: bool = False,
) -> dict:
    """Finetune, write all results to the folder ``out``, and return what ``metrics.json`` says.

    It is a ``ValueError`` if ``out`` has results already, unless ``resume`` or ``overwrite`` is
    set. If a signal stops the training, a checkpoint is written and ``SystemExit`` with 128 + the
    signal's number is raised.
    """
    started = time.perf_counter()
    settings.check()
    out = open_run_folder(out, RESULTS, resume=resume, overwrite=overwrite)
    check_folder(out)
    device = pick_device(device)
    data_name, entries = load_instructions(data)
    parts = split_data(entries)
    if preset == "tiny":
        parts = tuple(part[:TINY_ROWS] for part in parts)
        settings = replace(settings, max_new_tokens=9)
    if len(parts[0]) < settings.batch_size:
        raise ValueError(
            f"{len(parts[0])} training entries do not fill a single batch of "
            f"{settings.batch_size}: use a smaller --batch-size, or more entries"
        )
    for name, part in zip(("Training", "Validation", "Test"), parts, strict=True):
        print(f"{name} set length: {len(part)}")
    print(50 * "-")

    torch.manual_seed(seed)
    chosen = choose_model(model_name, preset)
    print(f"Device: {device}")
    model, context_length = chosen.model, chosen.config["context_length"]
    tokenizer = chosen.tokenizer or get_tokenizer("gpt2")
    settings.complete(chosen)
    style = chosen.chat if settings.prompt_style == CHAT else settings.prompt_style
    if style is None:
        raise ValueError(f"{model_name} has no chat template: choose another --prompt-style")
    settings.max_length = min(settings.max_length, context_length)
    if settings.lora:
        model.requires_grad_(False)
        replace_linear_with_lora(model, LORA_RANK, LORA_ALPHA)
    model.to(device)
    torch.manual_seed(seed)
    datasets = create_datasets(parts, tokenizer, style, settings)
    end = end_id(tokenizer, style)  # ends a response, and fills rows up
    train_loader, val_loader = create_loaders(datasets, end, settings)
    print(50 * "-")

    metrics = {
        "model": chosen.name,
        "asset": data_name,
        "rows": [len(part) for part in parts],
        "dropped": [dataset.num_dropped for dataset in datasets],
        "test_rows_also_in_training": count_shared(parts[0], parts[2]),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seed": seed,
        **vars(settings),
    }
    shown = {"model": model, "tokenizer": tokenizer, "style": style, "device": device}
    evaluate_here = partial(evaluate, parts[2], **shown, settings=settings)
    run = {
        "model": chosen.name,
        "seed": seed,
        "data_sha256": hash_of_text(json.dumps(entries)),
        **settings.identify_run(),
    }
    trainer = create_trainer(
        train_loader, val_loader, parts[1], run, out / CHECKPOINT, **shown, settings=settings
    )
    if resume:
        trainer.resume()
    else:
        trainer.progress.notes["before"], _ = evaluate_here("before training", only_verifiable=True)
        clear_run_folder(out, RESULTS)
        torch.manual_seed(seed)
    stopped_by = trainer.run()
    progress = trainer.progress
    if stopped_by:
        print(f"Stopped after {progress.step} updates; add --resume to continue.")
        raise SystemExit(128 + stopped_by)
    print(f"Training completed in {progress.seconds / 60:.2f} minutes.")
    metrics |= {"before": progress.notes["before"], "updates": progress.step}
    metrics["training_seconds"] = round(progress.seconds, 1)
    metrics["after"], responses = evaluate_here("after training")
    for kind, score in score_by_kind(parts[2], responses).items():
        print(f"  {kind}: {score['correct']} of {score['verifiable']}")
    write_json(
        out / "instruction-data-with-response.json",
        [
            entry | {"model_response": response}
            for entry, response in zip(parts[2], responses, strict=True)
        ],
    )
    if data_name == SYNTHETIC_INSTRUCTIONS:
        print(SYNTHETIC_INSTRUCTIONS_NOTICE)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    save_results(out, model, chosen, settings, metrics, progress)
    (out / CHECKPOINT).unlink(missing_ok=True)  # larger than the model, and no longer needed
    return metrics


def choose_model(model_name: str, preset: str) -> Pretrained:
    if preset == "tiny":
        return Pretrained("tiny, random weights", TINY_CONFIG, GPTModel(TINY_CONFIG))
    if model_name in model_configs:
        return choose_pretrained(model_name)
    return load_pretrained(model_name)


def count_shared(train_data: list[dict], test_data: list[dict]) -> int:
    """How many test entries are, instruction and input, training entries too."""
    seen = {(entry["instruction"], entry["input"]) for entry in train_data}
    return sum((entry["instruction"], entry["input"]) in seen for entry in test_data)


def create_datasets(parts, tokenizer, style, settings: Settings) -> list[InstructionDataset]:
    """The data to train and to validate; entries without room for a response are left out."""
    dataset_class = InstructionDatasetWithMasking if settings.mask_prompt else InstructionDataset
    datasets = [dataset_class(part, tokenizer, style, settings.max_length) for part in parts[:2]]
    for name, dataset in zip(("training", "validation"), datasets, strict=True):
        if dataset.num_dropped:
            print(
                f"Left out {dataset.num_dropped} entries of the {name} set: their prompts fill "
                f"{settings.max_length} tokens."
            )
    return datasets


def create_loaders(datasets, end: int, settings: Settings) -> tuple[DataLoader, DataLoader]:
    collate = custom_collate_with_masking_fn if settings.mask_prompt else custom_collate_fn
    options = {
        "batch_size": settings.batch_size,
        "collate_fn": partial(collate, pad_token_id=end, allowed_max_length=settings.max_length),
    }
    return (
        DataLoader(datasets[0], shuffle=True, drop_last=True, **options),
        DataLoader(datasets[1], **options),
    )


def evaluate(
    test_data: list[dict],
    when: str,
    *,
    model,
    tokenizer,
    style,
    device,
    settings: Settings,
    only_verifiable: bool = False,
) -> tuple[dict, list[str]]:
    """Measure the model on the test entries; also return its responses.

    The loss is that of the response tokens, whatever the model is trained on, so that all
    experiments can be compared.
    """
    dataset = InstructionDatasetWithMasking(test_data, tokenizer, style, settings.max_length)
    options = {"pad_token_id": end_id(tokenizer, style), "allowed_max_length": settings.max_length}
    collate = partial(custom_collate_with_masking_fn, **options)
    loader = DataLoader(dataset, batch_size=settings.batch_size, collate_fn=collate)
    asked = [e for e in test_data if answer_check(e)] if only_verifiable else test_data
    responses = generate_responses(
        asked,
        model,
        tokenizer,
        device,
        style,
        settings.max_new_tokens,
        progress=True,
    )
    measured = {"test_response_loss": calc_mean_token_loss(loader, model, device)}
    measured |= score_verifiable(asked, responses)
    if not only_verifiable and asked:
        shared = [token_f1(r, e["output"]) for r, e in zip(responses, asked, strict=True)]
        measured["mean_token_f1"] = sum(shared) / len(shared)
    print(
        f"Test set {when}: loss of responses {measured['test_response_loss']:.3f}, "
        f"{measured['correct']} of {measured['verifiable']} verifiable answers correct"
    )
    return measured, responses


def create_trainer(
    train_loader,
    val_loader,
    val_data,
    run: dict,
    path: Path,
    *,
    model,
    tokenizer,
    style,
    device,
    settings: Settings,
) -> Trainer:
    """A trainer with the chapter's settings; ``run`` says to which run its checkpoint belongs."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=0.1,
    )
    scheduler = None
    if settings.schedule == "cosine":
        steps = settings.num_epochs * len(train_loader)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step + 1, steps + 1, steps // 10, 0.0, 1.0, 0.0)
        )

    def show_sample() -> None:
        try:
            responses = generate_responses(val_data[:1], model, tokenizer, device, style, 50)
        except ValueError as error:  # the logits are no numbers any more
            raise FloatingPointError(f"{error}: try a lower --learning-rate") from None
        response = responses[0]
        tqdm.write(f"{val_data[0]['instruction']} {val_data[0]['input']} -> {response!r}")

    return Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        device,
        num_epochs=settings.num_epochs,
        eval_freq=settings.eval_freq,
        eval_iter=5,
        vocabulary=describe_vocabulary(tokenizer),
        scheduler=scheduler,
        max_grad_norm=1.0 if scheduler else None,
        autocast_dtype=getattr(torch, settings.dtype) if settings.dtype != "float32" else None,
        settings=run,
        checkpoint_path=path,
        checkpoint_freq=100,
        on_epoch_end=show_sample,
    )


def write_json(path: Path, content) -> None:
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def save_results(
    out: Path, model, chosen: Pretrained, settings: Settings, metrics: dict, progress
) -> None:
    about = {"pretrained": metrics["model"], "asset": metrics["asset"]}
    if settings.lora:
        save_lora(model, writable_folder(out / "adapter") / "lora.safetensors")
        merge_lora(model)
    save_finetuned(out, model, chosen.config, settings.prompt_style, base=chosen, **about)
    curves = {name: getattr(progress, name) for name in ("train_losses", "val_losses")}
    write_json(out / "metrics.json", metrics | curves)
    tokens = progress.track_tokens_seen
    epochs = [settings.num_epochs * seen / max(progress.tokens_seen, 1) for seen in tokens]
    with tempfile.TemporaryDirectory(dir=out) as folder:  # so that no plot is ever half-written
        files = [Path(folder) / f"loss-plot.{suffix}" for suffix in ("pdf", "png")]
        plot_losses(epochs, tokens, progress.train_losses, progress.val_losses, save_to=files)
        for path in files:
            path.replace(out / path.name)
    plt.close()


def compare(settings: Settings, seeds: tuple[int, ...] = (123, 124, 125), **options) -> None:
    """Print a Markdown table of the results with several seeds."""
    out = Path(options.pop("out"))
    rows = []
    for seed in seeds:
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = main(settings, seed=seed, out=out / f"seed-{seed}", **options)
        rows.append((seed, metrics["before"], metrics["after"], metrics["seconds"]))
    print(
        f"{metrics['model']} on {metrics['asset']}: {metrics['num_epochs']} epochs, learning rate "
        f"{metrics['learning_rate']}, batches of {metrics['batch_size']}, prompt style "
        f"{metrics['prompt_style']}\n"
    )
    print("| seed | loss before | loss after | correct before | correct after | seconds |")
    print("|---|---|---|---|---|---|")
    for seed, before, after, seconds in rows:
        losses = " | ".join(f"{m['test_response_loss']:.3f}" for m in (before, after))
        correct = " | ".join(f"{m['correct']} of {m['verifiable']}" for m in (before, after))
        print(f"| {seed} | {losses} | {correct} | {seconds:.0f} |")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("book", "tiny", "word-tasks"), default="book")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a size of GPT-2, gpt2-tiny, smollm2-135m-instruct, or a path "
        f"(default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--data",
        default="instruction-data",
        help="instruction-data (default), alpaca-52k, or a JSON file of entries",
    )
    parser.add_argument("--epochs", type=int, help="passes over the data (default: 2)")
    parser.add_argument("--learning-rate", type=float, help="(default: by model)")
    parser.add_argument("--batch-size", type=int, default=8, help="entries (default: 8)")
    parser.add_argument(
        "--max-length",
        type=int,
        default=1024,
        help="tokens of an entry; what is longer is cut (default: 1024, or the model's context)",
    )
    parser.add_argument(
        "--prompt-style",
        choices=("alpaca", "phi3", "chat"),
        help="(default: the model's chat template if it has one, else alpaca)",
    )
    parser.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        default="constant",
        help="of the learning rate; cosine has a warmup, and limits gradients to a norm of 1",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which matrices are multiplied (default: float32)",
    )
    parser.add_argument(
        "--mask-prompt", action="store_true", help="learn the responses only (exercise 7.2)"
    )
    parser.add_argument(
        "--lora", action="store_true", help=f"train LoRA layers of rank {LORA_RANK} only"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="of a response (default: 256, fewer by model)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random numbers (default: 123)"
    )
    folders = "runs/gpt_instruction_finetuning, with another --preset its name appended"
    add_run_options(parser, None, folders)
    parser.add_argument("--compare", action="store_true", help="print a table: three seeds")
    parser.add_argument(
        "--test_mode", action="store_const", const="tiny", dest="preset", help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.preset == "word-tasks":
        parser.set_defaults(**WORD_TASKS)
        args = parser.parse_args()
    return parser, args


if __name__ == "__main__":
    plt.switch_backend("agg")  # plots go to files only
    parser, args = parse_args()
    settings = Settings(
        num_epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        max_length=args.max_length,
        prompt_style=args.prompt_style,
        mask_prompt=args.mask_prompt,
        schedule=args.schedule,
        dtype=args.dtype,
        lora=args.lora,
        max_new_tokens=args.max_new_tokens,
    )
    name = "gpt_instruction_finetuning"
    out = default_folder(name, args.preset) if args.out is None else args.out
    options = {
        "model_name": args.model,
        "data": args.data,
        "device": args.device,
        "out": out,
        "preset": args.preset,
        "overwrite": args.overwrite,
    }
    with short_errors(parser):
        if args.compare and args.resume:
            raise ValueError("--compare makes three runs of its own: it cannot --resume one")
        if args.compare:
            compare(settings, **options)
        else:
            main(settings, seed=args.seed, resume=args.resume, **options)
            print(f"Wrote the model, its responses, metrics.json and the plot to {out}")
