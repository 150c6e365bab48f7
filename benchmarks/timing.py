"""Fair timings on a noisy machine: candidates take turns, and medians are compared."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, ``rounds`` of them per candidate, after one unmeasured call each."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, run in candidates.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize() -> None:
    """Wait for the GPU, if there is one: its work is only queued when a call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_table(seconds: dict[str, list[float]], units: float, unit: str, baseline: str) -> None:
    """A Markdown table of medians, in ``units`` per second, with ratios to the baseline."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"| variant | {unit}/s (median) | fastest to slowest | ratio to {baseline} |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        low, high = units / max(values), units / min(values)
        ratio = medians[baseline] / medians[name]
        print(
            f"| {name} | {units / medians[name]:,.0f} | {high:,.0f} to {low:,.0f} | {ratio:.2f} |"
        )


def bytes_per_token(model: torch.nn.Module) -> int:
    """Bytes of the weights that a step reads: all but rows of the embeddings, plus output layer."""
    embeddings = {"tok_emb.weight", "pos_emb.weight"}
    layers = [p for name, p in model.named_parameters() if name not in embeddings]
    if model.out_head.weight is model.tok_emb.weight:
        layers.append(model.out_head.weight)
    return sum(p.nbytes for p in layers)


def print_results(
    seconds: dict[str, list[float]], new_tokens: int, limit: float, baseline: str
) -> None:
    """A Markdown table; ``limit`` is the seconds in which memory delivers the weights once."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"| variant | tokens/s (median) | fastest to slowest | ratio to {baseline} | of limit |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        speed, high, low = (new_tokens / s for s in (median[name], min(values), max(values)))
        print(
            f"| {name} | {speed:.1f} | {high:.1f} to {low:.1f} "
            f"| {median[baseline] / median[name]:.2f} | {speed * limit:.0%} |"
        )
    print(f"| limit of the memory's bandwidth | {1 / limit:.1f} | | | 100% |")
