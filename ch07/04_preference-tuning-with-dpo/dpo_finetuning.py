"""Teach a model which of two answers is better: direct preference optimization (DPO).

Examples:
    python dpo_finetuning.py                     # SmolLM2 on the bundled pairs: LoRA, minutes
    python dpo_finetuning.py --preset tiny       # the bundled gpt2-tiny, two updates: seconds
    python dpo_finetuning.py --data preference-data --model runs/gpt_instruction_finetuning
    python dpo_finetuning.py --loss ipo --beta 0.5 --out runs/ipo
    python dpo_finetuning.py --compare           # three seeds, as a Markdown table
    python dpo_finetuning.py --resume            # after Ctrl-C: goes on where it was
"""

import argparse
import contextlib
import copy
import io
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader

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
from llms_from_scratch.ch05 import evaluating, load_pretrained
from llms_from_scratch.ch07 import (
    CHAT,
    check_folder,
    end_id,
    generate_responses,
    load_entries,
    open_finetuned,
    save_finetuned,
    split_data,
)
from llms_from_scratch.data import SAMPLES, resolve
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.dpo import (
    BLANK_LINE,
    PreferenceDataset,
    adapters_off,
    cache_reference,
    compute_dpo_loss_batch,
    custom_collate_fn,
    evaluate_dpo_loss_loader,
    mean_kl,
)
from llms_from_scratch.preference_rules import RULES, rule_counts
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer

LORA_RANK = LORA_ALPHA = 16
MAX_NEW_TOKENS = 64  # of an answer to a test entry
BUNDLED_PAIRS = "rules"
BEFORE = {"color": "#999999", "linestyle": "-"}  # and the training part
AFTER = {"color": "#0072b2", "linestyle": "--"}  # and the validation part
RESULTS = (
    CHECKPOINT,
    "model.pth",
    "settings.json",
    "tokenizer.json",
    "metrics.json",
    "answers.json",
    "dpo-plot.pdf",
    "dpo-plot.png",
    "adapter",
)


@dataclass
class Settings:
    """How to train; the defaults suit SmolLM2 and the bundled pairs."""

    num_epochs: int = 1
    learning_rate: float = 5e-5
    batch_size: int = 8
    beta: float = 0.3
    loss: str = "dpo"  # or "ipo"
    reduction: str = "sum"  # of the log-probabilities; the book has "mean"
    label_smoothing: float = 0.0
    lora: bool = True
    dtype: str = "bfloat16"  # of the products of matrices
    max_length: int = 256  # tokens of prompt and answer
    eval_freq: int = 10  # updates between two evaluations ...
    eval_iter: int = 2  # ... and batches of each part for one

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded."""
        for name in ("num_epochs", "learning_rate", "batch_size", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("--label-smoothing belongs to --loss dpo; leave it out with ipo")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"--label-smoothing must be from 0 to below 0.5, got {self.label_smoothing}"
            )

    def identify_run(self) -> dict:
        """What must be the same when a run is resumed; it may become longer."""
        return {name: value for name, value in vars(self).items() if name != "num_epochs"}


class Batch(dict):
    """A batch of pairs, of which the training loop can ask the number of tokens."""

    def numel(self) -> int:
        return self["chosen"].numel() + self["rejected"].numel()


@dataclass
class Run:
    """The model that is trained, and what is needed to talk to it."""

    model: torch.nn.Module
    reference: torch.nn.Module | None  # None: the model with its adapters off
    tokenizer: object
    style: object
    device: torch.device
    settings: Settings

    def autocast(self):
        if self.settings.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def loss_options(self) -> dict:
        settings = self.settings
        return {
            "beta": settings.beta,
            "reduction": settings.reduction,
            "kind": settings.loss,
            "label_smoothing": settings.label_smoothing,
        }

    def answers(self, entries: list[dict]) -> list[str]:
        return generate_responses(
            entries,
            self.model,
            self.tokenizer,
            self.device,
            self.style,
            MAX_NEW_TOKENS,
            progress=True,
        )


def main(
    settings: Settings,
    *,
    model_name: str = "smollm2-135m-instruct",
    data: str = BUNDLED_PAIRS,
    device: str = "auto",
    seed: int = 123,
    out: str | Path = "runs/dpo_finetuning",
    preset: str = "book",
    resume: bool = False,
    overwrite: bool = False,
    before: list[str] | None = None,
) -> dict:
    """Train, write all results to the folder ``out``, and return what ``metrics.json`` says.

    It is a ``ValueError`` if ``out`` has results already, unless ``resume`` or ``overwrite`` is
    set. If a signal stops the training, a checkpoint is written and ``SystemExit`` is raised.
    ``before`` are the model's answers to the test entries, if they are known.
    """
    started = time.perf_counter()
    settings.check()
    out = open_run_folder(out, RESULTS, resume=resume, overwrite=overwrite)
    check_folder(out)
    device = pick_device(device)
    data_name, pairs = load_pairs(data)
    parts = split_pairs(pairs)
    if preset == "tiny":
        model_name, parts = "gpt2-tiny", tuple(part[:8] for part in parts)
        settings.eval_freq = 5
    if len(parts[0]) < settings.batch_size:
        raise ValueError(
            f"{len(parts[0])} training pairs do not fill a batch of {settings.batch_size}: use a "
            "smaller --batch-size, or more pairs"
        )
    sizes = ", ".join(
        f"{len(part)} to {name}"
        for name, part in zip(("train", "validate", "test"), parts, strict=True)
    )
    print(f"Data: {data_name}, {sizes}")

    torch.manual_seed(seed)
    chosen, prompt_style = open_model(model_name)
    print(f"Model: {chosen.name}, on {device}")
    run = prepare(chosen, prompt_style, settings, device)
    loaders = create_loaders(run, parts)
    identity = {
        "model": chosen.name,
        "seed": seed,
        "data_sha256": hash_of_text(json.dumps(pairs)),
        **settings.identify_run(),
    }
    trainer = create_trainer(run, loaders, identity, out / CHECKPOINT)
    progress = trainer.progress
    if resume:
        trainer.resume()
        progress = trainer.progress
    else:
        progress.notes["before"] = before or run.answers(parts[2])
        progress.notes["history"] = []
        clear_run_folder(out, RESULTS)
        torch.manual_seed(seed)
    stopped_by = trainer.run()
    if stopped_by:
        print(f"Stopped after {progress.step} updates; add --resume to continue.")
        raise SystemExit(128 + stopped_by)
    print(f"Training took {progress.seconds:.0f} seconds.")
    after = run.answers(parts[2])
    before = progress.notes["before"]
    metrics = {
        "model": chosen.name,
        "data": data_name,
        "rows": [len(part) for part in parts],
        "seed": seed,
        **vars(settings),
        "updates": progress.step,
        "training_seconds": round(progress.seconds, 1),
        "history": progress.notes["history"],
    }
    if all("rule" in entry for entry in parts[2]):
        metrics |= {
            "before": rule_counts(parts[2], before),
            "after": rule_counts(parts[2], after),
        }
        show_counts(metrics)
    show_samples(parts[2], before, after)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    save_results(out, run, chosen, prompt_style, metrics)
    answers = [
        entry | {"before": one, "after": other}
        for entry, one, other in zip(parts[2], before, after, strict=True)
    ]
    write_json(out / "answers.json", answers)
    (out / CHECKPOINT).unlink(missing_ok=True)  # no longer needed
    return metrics


def load_pairs(source: str) -> tuple[str, list[dict]]:
    """Pairs, and what they are; ``ValueError`` names the first entry that is no pair."""
    if source == BUNDLED_PAIRS:
        name, path = "bundled pairs with rules", SAMPLES / "preference-data-synthetic.json"
    elif source == "preference-data":
        found = resolve(source)
        name = source if found.source != "sample" else "bundled pairs with rules"
        path = found.path
    elif Path(source).is_file():
        name, path = Path(source).name, Path(source)
    else:
        raise FileNotFoundError(f"{source} is neither a file nor rules or preference-data")
    pairs = load_entries(path)
    for i, pair in enumerate(pairs):
        for key in ("chosen", "rejected"):
            if not isinstance(pair.get(key), str) or not pair[key]:
                raise ValueError(f"{path}: entry {i} has no text {key!r}")
    return name, pairs


def split_pairs(pairs: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """To train, to validate, to test: with rules to check, more is kept to test.

    Pairs with a rule come in groups, a question with each of the rules; a group is not divided.
    """
    if not all("rule" in pair for pair in pairs):
        return split_data(pairs)
    groups = [pairs[i : i + len(RULES)] for i in range(0, len(pairs), len(RULES))]
    parts = split_data(groups, train_frac=0.7, test_frac=0.2)
    return tuple([pair for group in part for pair in group] for part in parts)


def open_model(name: str):
    """A pretrained or finetuned model, and the style in which it is asked."""
    if Path(name).is_dir():
        chosen, settings = open_finetuned(name)
        style = settings["prompt_style"]
    else:
        chosen, style = load_pretrained(name), None
    if chosen.tokenizer is None:
        raise ValueError(f"{name} came without a tokenizer: put its tokenizer.json there")
    return chosen, style or (CHAT if chosen.chat else "alpaca")


def prepare(chosen, prompt_style: str, settings: Settings, device: torch.device) -> Run:
    """The policy: the model with LoRA layers, or all of it and a copy as the reference."""
    model, reference = chosen.model.to(device), None
    settings.max_length = min(settings.max_length, chosen.config["context_length"])
    if settings.lora:
        model.requires_grad_(False)
        replace_linear_with_lora(model, LORA_RANK, LORA_ALPHA)
    else:
        reference = copy.deepcopy(model).requires_grad_(False).eval()
    style = chosen.chat if prompt_style == CHAT else prompt_style
    return Run(model, reference, chosen.tokenizer, style, device, settings)


def create_loaders(run: Run, parts) -> tuple[DataLoader, DataLoader]:
    """Loaders of (pairs, targets); the reference's log-probabilities are computed here, once."""
    settings = run.settings
    end = end_id(run.tokenizer, run.style)
    pairs = partial(
        custom_collate_fn,
        pad_token_id=end,
        allowed_max_length=settings.max_length,
        device=run.device,
        separator=BLANK_LINE if isinstance(run.style, str) else 0,
    )
    datasets = [PreferenceDataset(part, run.tokenizer, run.style, end) for part in parts[:2]]
    for dataset in datasets:
        with run.autocast():
            cache_reference(dataset, run.reference or run.model, pairs, settings.batch_size)
    collate = partial(collate_for_training, pairs)
    return (
        DataLoader(datasets[0], settings.batch_size, True, drop_last=True, collate_fn=collate),
        DataLoader(datasets[1], settings.batch_size, collate_fn=collate),
    )


def collate_for_training(collate, items: list[dict]) -> tuple[Batch, torch.Tensor]:
    """A batch, and its targets as the training loop counts them: -100 where nothing is learned."""
    batch = Batch(collate(items))
    rows = [
        batch[name].masked_fill(~batch[f"{name}_mask"], -100) for name in ("chosen", "rejected")
    ]
    return batch, torch.cat(rows)


def create_trainer(run: Run, loaders, identity: dict, path: Path) -> Trainer:
    settings = run.settings
    trained = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.01)
    updates = settings.num_epochs * len(loaders[0])
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate(step + 1, updates + 1, max(1, updates // 10), 0.0, 1.0, 0.0),
    )

    def calc_loss(batch, targets, model, device):
        return compute_dpo_loss_batch(batch, model, None, **run.loss_options())[0]

    def evaluate(model, train_loader, val_loader, device, eval_iter):
        pairs = [[batch for batch, _ in loader] for loader in (train_loader, val_loader)]
        found = evaluate_dpo_loss_loader(
            model, None, *pairs, eval_iter=eval_iter, **run.loss_options()
        )
        found["val_kl"] = kl_to_reference(run, pairs[1][:eval_iter])
        found["step"] = trainer.progress.step
        trainer.progress.notes["history"].append(found)
        margin = found["val_chosen_reward"] - found["val_rejected_reward"]
        print(f"  margin {margin:.2f}, KL {found['val_kl']:.3f} (validation)")
        return found["train_loss"], found["val_loss"]

    trainer = Trainer(
        run.model,
        optimizer,
        *loaders,
        run.device,
        num_epochs=settings.num_epochs,
        eval_freq=settings.eval_freq,
        eval_iter=settings.eval_iter,
        scheduler=scheduler,
        max_grad_norm=1.0,
        autocast_dtype=torch.bfloat16 if settings.dtype == "bfloat16" else None,
        vocabulary=describe_vocabulary(run.tokenizer),
        settings=identity,
        checkpoint_path=path,
        checkpoint_freq=50,
        calc_loss=calc_loss,
        evaluate=evaluate,
    )
    return trainer


def kl_to_reference(run: Run, batches: list[dict]) -> float:
    """Mean KL divergence to the reference over the tokens of chosen answers, in nats a token."""
    found = []
    with evaluating(run.model):
        for batch in batches:
            logits = run.model(batch["chosen"])
            with adapters_off(run.model) if run.reference is None else contextlib.nullcontext():
                reference_logits = (run.reference or run.model)(batch["chosen"])
            found += mean_kl(logits, reference_logits, batch["chosen_mask"]).tolist()
    return sum(found) / len(found)


def show_counts(metrics: dict) -> None:
    print("Answers to test entries that have the wanted form:")
    for rule, (passed, total) in metrics["after"].items():
        print(f"  {rule:20} {metrics['before'][rule][0]} of {total} -> {passed} of {total}")


def show_samples(entries: list[dict], before: list[str], after: list[str], number=6) -> None:
    for entry, one, other in list(zip(entries, before, after, strict=True))[:number]:
        print(f"\n{entry['instruction']}\n  before: {one!r:.200}\n  after:  {other!r:.200}")


def write_json(path: Path, content) -> None:
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def save_results(out: Path, run: Run, chosen, prompt_style: str, metrics: dict) -> None:
    if run.settings.lora:
        save_lora(run.model, writable_folder(out / "adapter") / "lora.safetensors")
        merge_lora(run.model)
    about = {"pretrained": metrics["model"], "asset": metrics["data"]}
    save_finetuned(out, run.model, chosen.config, prompt_style, base=chosen, **about)
    write_json(out / "metrics.json", metrics)
    plot([metrics], [out / "dpo-plot.pdf", out / "dpo-plot.png"])


def plot(runs: list[dict], paths: list[Path]) -> None:
    """Loss, reward margin and KL to the reference against updates; then the share of each rule.

    ``runs`` are the metrics of one run, or of several that differ in their seeds only.
    """
    has_rules = all("after" in metrics for metrics in runs)
    fig, axes = plt.subplots(
        1, 4 if has_rules else 3, figsize=(14, 3), width_ratios=[1, 1, 1, 1.2][: 3 + has_rules]
    )
    for number, metrics in enumerate(runs):
        history = metrics["history"]
        steps = [found["step"] for found in history]
        for part, style in (("train", BEFORE), ("val", AFTER)):
            label = part if number == 0 else None
            axes[0].plot(steps, [found[f"{part}_loss"] for found in history], **style, label=label)
            margins = [
                found[f"{part}_chosen_reward"] - found[f"{part}_rejected_reward"]
                for found in history
            ]
            axes[1].plot(steps, margins, **style, label=label)
        axes[2].plot(steps, [found["val_kl"] for found in history], **AFTER, label=label)
    titles = ("loss", "reward margin", "KL to the reference, nats a token")
    for ax, title in zip(axes[:3], titles, strict=True):
        ax.set(title=title, xlabel="updates")
        ax.legend()
    if has_rules:
        plot_shares(axes[3], runs)
    fig.tight_layout()
    for path in paths:
        fig.savefig(path)
    plt.close(fig)


def plot_shares(ax, runs: list[dict]) -> None:
    """A bar for the mean share of each rule, before and after, and a dot for each run."""
    names = list(runs[0]["after"])
    for shift, part, style in ((-0.2, "before", BEFORE), (0.2, "after", AFTER)):
        places = [i + shift for i in range(len(names))]
        shares = [[run[part][name][0] / run[part][name][1] for run in runs] for name in names]
        means = [sum(row) / len(row) for row in shares]
        ax.barh(places, means, height=0.4, label=part, color=style["color"])
        if part == "after" and len(runs) > 1:
            for place, row in zip(places, shares, strict=True):
                ax.plot(row, [place] * len(row), ".", color="black")
    ax.set(title="answers in the wanted form", xlim=(0, 1.02), yticks=range(len(names)))
    ax.set_yticklabels([name.replace("_", " ") for name in names])
    ax.invert_yaxis()
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)  # below the bars


def compare(settings: Settings, seeds: tuple[int, ...] = (123, 124, 125), **options) -> None:
    """Print a Markdown table of the results with several seeds, and plot them together."""
    out, runs = Path(options.pop("out")), []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        with contextlib.redirect_stdout(io.StringIO()):
            before = saved_answers(out / f"seed-{seeds[0]}") if runs else None
            copied = copy.copy(settings)
            runs.append(main(copied, seed=seed, out=folder, before=before, **options))
    print("| seed | right form before | after | margin | KL | seconds |")
    print("|---|---|---|---|---|---|")
    for metrics in runs:
        last = metrics["history"][-1]
        shares = [f"{a} of {n}" for a, n in (metrics[w]["all"] for w in ("before", "after"))]
        margin = last["val_chosen_reward"] - last["val_rejected_reward"]
        row = (metrics["seed"], *shares, f"{margin:.1f}", f"{last['val_kl']:.3f}")
        print(f"| {' | '.join(map(str, row))} | {metrics['seconds']:.0f} |")
    plot(runs, [out / "dpo-seeds.svg", out / "dpo-seeds.png"])


def saved_answers(folder: Path) -> list[str]:
    """What the model answered before its training: the same with all seeds."""
    rows = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return [row["before"] for row in rows]


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("book", "tiny"), default="book")
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="smollm2-135m-instruct (default), gpt2-tiny, another name, or a folder",
    )
    parser.add_argument(
        "--data",
        default=BUNDLED_PAIRS,
        help="rules (default): the bundled pairs; preference-data: the book's; or a JSON file",
    )
    parser.add_argument("--epochs", type=int, default=1, help="passes over the data (default: 1)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="(default: 5e-5)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs (default: 8)")
    parser.add_argument(
        "--beta", type=float, default=0.3, help="larger: closer to the reference (default: 0.3)"
    )
    parser.add_argument("--loss", choices=("dpo", "ipo"), default="dpo")
    parser.add_argument(
        "--reduction",
        choices=("sum", "mean"),
        default="sum",
        help="of an answer's log-probabilities: the paper's sum (default), or the book's mean",
    )
    parser.add_argument(
        "--label-smoothing", type=float, default=0.0, help="share of wrong pairs (default: 0)"
    )
    parser.add_argument("--all-weights", action="store_true", help="train all, not LoRA layers")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--seed", type=int, default=123, help="(default: 123)")
    folders = "runs/dpo_finetuning, with --preset tiny the same with -tiny"
    add_run_options(parser, None, folders)
    parser.add_argument("--compare", action="store_true", help="print a table: three seeds")
    return parser, parser.parse_args()


if __name__ == "__main__":
    parser, args = parse_args()
    with short_errors(parser):
        settings = Settings(
            num_epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            beta=args.beta,
            loss=args.loss,
            reduction=args.reduction,
            label_smoothing=args.label_smoothing,
            lora=not args.all_weights,
            dtype=args.dtype,
        )
        options = {
            "model_name": args.model,
            "data": args.data,
            "device": args.device,
            "out": args.out
            if args.out is not None
            else default_folder("dpo_finetuning", args.preset),
            "preset": args.preset,
            "overwrite": args.overwrite,
        }
        if args.compare:
            if args.resume:
                raise ValueError("--compare trains anew with each seed: leave out --resume")
            compare(settings, **options)
        else:
            main(settings, seed=args.seed, resume=args.resume, **options)
