"""Six ways to remember, on a small task of recall: who learns it, and who cannot.

A text first writes values under keys, some twice, then asks for keys; right is the value that was
written last. Each model is the GPT of chapter 4 with two layers and another attention.

Examples:
    python recall_experiment.py                        # 6 models, 3 seeds: under two minutes
    python recall_experiment.py --steps 20 --seeds 1   # a look at it
    python recall_experiment.py --out runs/again       # recall.csv and recall.png go there
"""

import argparse
import csv
import multiprocessing
import signal
import statistics
import time
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.estimators import PLOT_COLORS, gb, print_table
from llms_from_scratch.app.script_tools import short_errors, writable_folder
from llms_from_scratch.app.variant_scripts import cache_bytes
from llms_from_scratch.cache_memory import check_positive
from llms_from_scratch.gpt_variants import (
    GPTWithDeltaNet,
    GPTWithGQA,
    GPTWithMHA,
    GPTWithMLA,
    GPTWithSWA,
)

NUM_KEYS, NUM_VALUES = 8, 4
WRITES, QUERIES = 16, 8  # tokens of each kind in a text
WINDOW = 8
CONFIG = {
    "vocab_size": NUM_KEYS * NUM_VALUES + NUM_KEYS,  # "key = value" is one token, "key?" another
    "context_length": WRITES + QUERIES,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
MODELS = {
    "MHA": (GPTWithMHA, {}),
    "GQA, 1 KV head": (GPTWithGQA, {"n_kv_groups": 1}),
    "MLA, latent 16": (GPTWithMLA, {"latent_dim": 16}),
    "SWA, window 8": (
        GPTWithSWA,
        {"sliding_window_size": WINDOW, "sliding_window_stride": -1},
    ),
    "DeltaNet": (GPTWithDeltaNet, {}),
    "hybrid": (GPTWithDeltaNet, {"full_attention_every": 2}),
}
KINDS = ("written once", "overwritten", "within 8 tokens", "farther")


def make_batch(b: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Ids (b, WRITES + QUERIES), answers (b, QUERIES), and which answers are of which kind."""
    keys = torch.randint(NUM_KEYS, (b, WRITES), generator=generator)
    values = torch.randint(NUM_VALUES, (b, WRITES), generator=generator)
    # Ask for keys that were written: those at places drawn at random
    places = torch.randint(WRITES, (b, QUERIES), generator=generator)
    asked = keys.gather(1, places)  # (b, QUERIES)
    same = keys[:, None] == asked[..., None]  # (b, QUERIES, WRITES)
    last = (same * torch.arange(1, WRITES + 1)).argmax(dim=-1)  # where it was written last
    answers = values.gather(1, last)
    ids = torch.cat([keys * NUM_VALUES + values, NUM_KEYS * NUM_VALUES + asked], dim=1)
    is_once = same.sum(dim=-1) == 1
    distance = torch.arange(WRITES, WRITES + QUERIES) - last
    is_near = distance < WINDOW
    kinds = dict(zip(KINDS, (is_once, ~is_once, is_near, ~is_near), strict=True))
    return ids, answers, kinds


def answer_scores(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Scores of the values at the queries, (b, QUERIES, NUM_VALUES)."""
    return model(ids)[:, WRITES:, :NUM_VALUES]


def train(job: tuple[str, int, int, int]) -> dict:
    """Train one model with one seed; what it gets right, by kind, and along the way."""
    name, seed, steps, batch_size = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    cls, extra = MODELS[name]
    model = cls(CONFIG | extra)
    with torch.no_grad():
        model.pos_emb.weight.mul_(0.05)  # at full size, positions would drown the keys
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for step in range(steps):
        ids, answers, _ = make_batch(batch_size, generator)
        scores = answer_scores(model, ids)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 12) == 0 or step == steps - 1:
            curve.append((step + 1, evaluate(model, 128)["all"]))
    parameters = sum(p.numel() for p in model.parameters())
    kept = cache_bytes(model, CONFIG["context_length"])
    return {"name": name, "seed": seed, "curve": curve, "bytes": kept, "weights": parameters} | (
        evaluate(model, 1000)
    )


@torch.no_grad()
def evaluate(model: torch.nn.Module, b: int) -> dict[str, float]:
    """Shares of right answers on texts that no training has, of all queries and by kind."""
    ids, answers, kinds = make_batch(b, torch.Generator().manual_seed(999_999))
    right = answer_scores(model, ids).argmax(dim=-1) == answers
    shares = {kind: right[where].float().mean().item() for kind, where in kinds.items()}
    return {"all": right.float().mean().item()} | shares


def with_spread(values: list[float]) -> str:
    """Mean and standard deviation of shares, in percent.

    >>> with_spread([0.5, 0.7])
    '60.0 ± 14.1'
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def plot(results: list[dict], path: Path) -> None:
    """Right answers while training, means over the seeds with their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    styles = ("-", "--", "-.", ":", "-", "--")
    for number, name in enumerate(MODELS):
        curves = [result["curve"] for result in results if result["name"] == name]
        if not curves:
            continue
        steps = [step for step, _ in curves[0]]
        shares = [[100 * share for _, share in point] for point in zip(*curves, strict=True)]
        means = [statistics.mean(point) for point in shares]
        color = PLOT_COLORS[number]
        axes.plot(steps, means, color=color, linestyle=styles[number], linewidth=2, label=name)
        low, high = [min(point) for point in shares], [max(point) for point in shares]
        axes.fill_between(steps, low, high, color=color, alpha=0.15)
    axes.axhline(100 / NUM_VALUES, color="grey", linewidth=1)
    axes.annotate("guessing", (0, 100 / NUM_VALUES + 1), color="grey")
    axes.set_xlabel("training steps")
    axes.set_ylabel("right answers (%)")
    axes.set_title("Recalling the value that was written last under a key")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="of training (default: 400)")
    parser.add_argument("--batch_size", type=int, default=32, help="texts (default: 32)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--out",
        default="runs/recall",
        help="folder of recall.csv and recall.png (default: runs/recall)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace those of an earlier run")
    args = parser.parse_args()
    with short_errors(parser):
        names = ("steps", "batch_size", "seeds", "workers")
        check_positive(**{f"--{name}": getattr(args, name) for name in names})
        if args.steps < 5:
            raise ValueError(f"--steps must be at least 5, got {args.steps}")
        folder = writable_folder(args.out)
        if (folder / "recall.csv").exists() and not args.overwrite:
            raise ValueError(f"{folder} has a recall.csv: choose another --out, or --overwrite it")
        run(args, folder)


def run(args, folder: Path) -> None:
    started = time.perf_counter()
    jobs = [
        (name, seed, args.steps, args.batch_size) for name in MODELS for seed in range(args.seeds)
    ]
    results = []
    # Ctrl-C is for this process, which then ends the others
    ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.Pool(args.workers, signal.signal, ignore_ctrl_c) as pool:
        for result in pool.imap(train, jobs):
            results.append(result)
            print(f"{result['name']:<15} seed {result['seed']}: {100 * result['all']:5.1f} % right")
    columns = ("all", *KINDS)
    rows = [["model", "weights", "cache", *(f"{kind}, %" for kind in columns)]]
    for name in MODELS:
        mine = [result for result in results if result["name"] == name]
        shares = [with_spread([result[kind] for result in mine]) for kind in columns]
        rows.append([name, f"{mine[0]['weights']:,}", gb(mine[0]["bytes"]), *shares])
    print()
    print_table(rows)
    with (folder / "recall.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "seed", *columns])
        for result in results:
            shares = [f"{result[kind]:.4f}" for kind in columns]
            writer.writerow([result["name"], result["seed"], *shares])
    plot(results, folder / "recall.png")
    print(
        f"\n{time.perf_counter() - started:.0f} s; {folder / 'recall.csv'} and recall.png written"
    )


if __name__ == "__main__":
    main()
