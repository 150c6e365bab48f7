"""What is new in the models after Olmo 3: ``python tools/figures/newer_blocks.py`` writes it."""

import math

import matplotlib.pyplot as plt
from architectures import table
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, arrow, box, canvas, cells, label, save

FOLDER = "ch05/what-changed/figures"


def main() -> None:
    save(parallel_block(), f"{FOLDER}/parallel-block.svg")
    save(memory_and_attention(), f"{FOLDER}/memory-and-attention.svg")
    save(what_turns(), f"{FOLDER}/what-turns.svg")
    save(gated_attention(), f"{FOLDER}/gated-attention.svg")
    save(shared_keys(), f"{FOLDER}/shared-keys.svg")
    save(per_layer_input(), f"{FOLDER}/per-layer-input.svg")
    save(bounded_logits(), f"{FOLDER}/bounded-logits.svg")
    save(cache_per_token(), f"{FOLDER}/cache-per-token.svg")


def parallel_block():
    """One sublayer after the other, and both side by side."""
    fig, ax = canvas(8.2, 4.3)
    label(ax, 1.9, 4.1, "as in most models", size=11, weight="bold")
    stream(ax, 1.0, 3.8)
    for y, name, color in ((0.9, "attention", BLUE), (2.4, "feed-forward", GREEN)):
        sublayer(ax, 1.0, y, name, color)
    label(ax, 6.0, 4.1, "Tiny Aya: side by side", size=11, weight="bold")
    stream(ax, 4.6, 3.8)
    box(ax, 5.2, 0.9, 2.7, 0.35, "norm", ORANGE, size=9)
    ax.plot([4.6, 6.55, 6.55], [0.6, 0.6, 0.75], color=INK, linewidth=1.2)
    arrow(ax, (6.55, 0.7), (6.55, 0.9))
    for x, name, color in ((5.2, "attention", BLUE), (6.65, "feed-forward", GREEN)):
        arrow(ax, (x + 0.62, 1.25), (x + 0.62, 1.55))
        box(ax, x, 1.55, 1.25, 0.55, name, color, size=9)
        ax.plot([x + 0.62, x + 0.62], [2.1, 2.7], color=INK, linewidth=1.2)
    ax.plot([5.82, 7.27], [2.7, 2.7], color=INK, linewidth=1.2)
    arrow(ax, (5.82, 2.7), (4.75, 2.7))
    plus(ax, 4.6, 2.7)
    return fig


def memory_and_attention():
    """What two layers keep of a text: a matrix, or a column for each token."""
    fig, ax = canvas(8.2, 3.6)
    for left, title in ((0.2, "gated delta rule: 3 of 4 layers"), (4.3, "attention: every 4th")):
        label(ax, left + 1.85, 3.4, title, size=11, weight="bold")
        for i in range(6):
            box(ax, left + 0.6 * i + 0.1, 0.2, 0.5, 0.35, f"t{i + 1}", ORANGE, size=9)
    box(ax, 1.25, 1.5, 1.6, 1.2, "memory\nkey × value\nper head", PURPLE, size=9)
    for i in range(6):
        arrow(ax, (0.55 + 0.6 * i, 0.55), (1.4 + 0.26 * i, 1.5))
    label(ax, 2.05, 2.95, "as large after a million tokens", size=9)
    for i in range(6):
        x = 4.4 + 0.6 * i
        box(ax, x, 1.5, 0.5, 1.2, "key\n\nvalue", BLUE, size=8)
        arrow(ax, (x + 0.25, 0.55), (x + 0.25, 1.5))
    label(ax, 6.15, 2.95, "one column more per token", size=9)
    return fig


def what_turns():
    """Of a head of 16 numbers, those that turn with the position; pairs have the same number."""
    fig, ax = canvas(8.6, 4.1)
    half = [str(i) for i in range(1, 9)]
    pairwise = [str(i // 2 + 1) for i in range(16)]
    quarter = ["1", "2", "1", "2"] + [""] * 12
    some = (half[:2] + [""] * 6) * 2
    rows = (
        ("most models", half * 2),
        ("Tiny Aya, with a window", pairwise),
        ("Tiny Aya, sees everything", [""] * 16),
        ("Qwen3.5, attention", quarter),
        ("Gemma 4, sees everything", some),
    )
    for i, (name, texts) in enumerate(rows):
        y = 3.6 - 0.7 * i
        label(ax, 2.5, y - 0.2, name, size=10, ha="right")
        cells(ax, 2.7, y, [texts], [[BLUE if text else GREY for text in texts]], width=0.35)
    label(ax, 5.5, 3.85, "a head of 16 numbers; equal numbers: a pair that turns together", size=9)
    label(ax, 5.5, 0.2, "grey: stays as it is, wherever its token stands", size=9)
    return fig


def gated_attention():
    """A query and a gate from one matrix; the gate lets through what attention has found."""
    fig, ax = canvas(8.2, 3.4)
    arrow(ax, (0.1, 1.2), (0.6, 1.2))
    box(ax, 0.6, 0.8, 1.2, 0.8, "one matrix", GREY, size=9)
    for i in range(2):
        y = 0.55 + 1.2 * i
        box(ax, 2.2, y + 0.35, 1.1, 0.35, f"query, head {2 - i}", ORANGE, size=8)
        box(ax, 2.2, y, 1.1, 0.35, f"gate, head {2 - i}", PURPLE, size=8)
        arrow(ax, (1.8, 1.2), (2.2, y + 0.35))
        arrow(ax, (3.3, y + 0.55), (4.1, y + 0.55))
        box(ax, 4.1, y + 0.35, 1.5, 0.4, "attention", BLUE, size=9)
        ax.plot([3.3, 6.1, 6.1], [y + 0.15, y + 0.15, y + 0.35], color=INK, linewidth=1.2)
        label(ax, 4.7, y + 0.02, "sigmoid: 0 to 1", size=8)
        arrow(ax, (6.1, y + 0.3), (6.1, y + 0.4))
        arrow(ax, (5.6, y + 0.55), (5.95, y + 0.55))
        box(ax, 5.96, y + 0.4, 0.28, 0.28, "×", GREEN, size=10)
        arrow(ax, (6.24, y + 0.55), (7.0, 1.7))
    box(ax, 7.0, 1.3, 1.0, 0.8, "output\nmatrix", GREY, size=9)
    box(ax, 4.1, 2.75, 1.5, 0.4, "keys and values", ORANGE, size=9)
    arrow(ax, (4.85, 2.75), (4.85, 2.5))
    return fig


def shared_keys():
    """Layers that make keys, layers that take them, and a table for all."""
    fig, ax = canvas(8.2, 4.0)
    for i in range(6):
        y, makes = 0.3 + 0.6 * i, i < 3
        kind = "full" if i % 3 == 2 else "window"
        text = f"layer {i + 1}, {kind}: " + ("own keys" if makes else "queries only")
        box(ax, 3.0, y, 2.6, 0.42, text, BLUE if makes else GREEN, size=9)
        arrow(ax, (2.3, y + 0.21), (3.0, y + 0.21))
    for source, target, x in ((1, 3, 6.2), (1, 4, 6.2), (2, 5, 6.9)):
        start, end = (0.51 + 0.6 * i for i in (source, target))
        ax.plot([5.6, x, x], [start, start, end], color=INK, linewidth=1.2)
        arrow(ax, (x, end), (5.6, end))
    box(ax, 0.3, 0.3, 2.0, 3.42, "table:\na token's vector\nfor each layer", ORANGE, size=9)
    label(ax, 7.55, 2.0, "keys and\nvalues", size=9)
    return fig


def per_layer_input():
    """What comes last in a block of Gemma 4: the token's vector for this layer, and a factor."""
    fig, ax = canvas(8.2, 3.6)
    stream(ax, 1.0, 3.5)
    box(ax, 0.35, 0.35, 1.3, 0.55, "attention,\nfeed-forward", BLUE, size=9)
    ax.plot([1.0, 2.6], [1.2, 1.2], color=INK, linewidth=1.2)
    arrow(ax, (2.4, 1.2), (2.7, 1.2))
    box(ax, 2.7, 0.95, 1.2, 0.5, "gate matrix,\nGELU", GREEN, size=9)
    arrow(ax, (3.9, 1.2), (4.35, 1.2))
    box(ax, 4.35, 1.06, 0.28, 0.28, "×", PURPLE, size=10)
    box(ax, 3.5, 0.1, 2.0, 0.5, "vector of this token\nfor this layer", ORANGE, size=9)
    arrow(ax, (4.49, 0.6), (4.49, 1.06))
    arrow(ax, (4.63, 1.2), (5.1, 1.2))
    box(ax, 5.1, 0.95, 1.2, 0.5, "matrix back", GREEN, size=9)
    arrow(ax, (6.3, 1.2), (6.7, 1.2))
    box(ax, 6.7, 0.95, 1.0, 0.5, "norm", ORANGE, size=9)
    ax.plot([7.2, 7.2], [1.45, 2.1], color=INK, linewidth=1.2)
    arrow(ax, (7.2, 2.1), (1.14, 2.1))
    plus(ax, 1.0, 2.1)
    box(ax, 0.86, 2.66, 0.28, 0.28, "×", PURPLE, size=10)
    box(ax, 1.9, 2.6, 1.6, 0.4, "the layer's factor", GREY, size=9)
    arrow(ax, (1.9, 2.8), (1.14, 2.8))
    return fig


def bounded_logits():
    """30 tanh(z / 30) beside z."""
    fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
    logits = range(-90, 91)
    ax.plot(logits, logits, ":", color="0.4", label="without a bound")
    ax.plot(logits, [30 * math.tanh(z / 30) for z in logits], color="#0072b2", label="Gemma 4")
    ax.set(xlabel="logit z", ylabel="30 tanh(z / 30)", ylim=(-45, 45))
    ax.legend(fontsize=8)
    return fig


def cache_per_token():
    """Bytes of a cache for each token of a text; marks are measured, lines computed."""
    fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    looks = (("#000000", "s", ":"), ("#0072b2", "o", "-"), ("#d55e00", "^", "--"))
    looks += (("#009e73", "D", "-."), ("#cc79a7", "v", "-"))
    for model, (color, mark, line) in zip(table.WITH_CACHES, looks, strict=True):
        end = min(model.cfg["context_length"], 131_072)
        lengths = [round(64 * 2 ** (i / 4)) for i in range(45) if 64 * 2 ** (i / 4) <= end]
        ax.plot(lengths, [model.cache_bytes(n) / n / 1000 for n in lengths], line, color=color)
        kept = table.measured()[model.name]
        counted = [size / n / 1000 for n, size in kept.items()]
        ax.plot(list(kept), counted, mark, color=color, label=model.name)
    ax.set_xscale("log", base=2)
    ticks = [64, 256, 1024, 4096, 16_384, 65_536]
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    ax.set(xlabel="tokens of the text", ylabel="cache per token, kB", ylim=(0, 130))
    ax.legend(fontsize=8)
    return fig


def sublayer(ax, x: float, y: float, name: str, color: str) -> None:
    """A norm and a sublayer beside the stream at ``x``, and the sum above them."""
    ax.plot([x, x + 1.35, x + 1.35], [y - 0.3, y - 0.3, y - 0.1], color=INK, linewidth=1.2)
    arrow(ax, (x + 1.35, y - 0.2), (x + 1.35, y))
    box(ax, x + 0.7, y, 1.3, 0.3, "norm", ORANGE, size=9)
    box(ax, x + 0.7, y + 0.38, 1.3, 0.4, name, color, size=9)
    ax.plot([x + 1.35, x + 1.35], [y + 0.78, y + 0.95], color=INK, linewidth=1.2)
    arrow(ax, (x + 1.35, y + 0.95), (x + 0.15, y + 0.95))
    plus(ax, x, y + 0.95)


def stream(ax, x: float, top: float) -> None:
    ax.plot([x, x], [0.1, top - 0.2], color=INK, linewidth=1.2, zorder=0)
    arrow(ax, (x, top - 0.3), (x, top))


def plus(ax, x: float, y: float) -> None:
    box(ax, x - 0.14, y - 0.14, 0.28, 0.28, "+", PURPLE, size=10)


if __name__ == "__main__":
    main()
