"""Diagrams of chapter 3: ``python tools/figures/ch03.py`` writes them as SVG files."""

import numpy as np
from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    WHITE,
    arrow,
    box,
    canvas,
    cells,
    label,
    save_all,
)

FOLDER = "ch03/01_main-chapter-code/figures"

WORDS = ["Your", "journey", "starts", "with", "one", "step"]
INPUTS = np.array(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)


def main() -> None:
    save_all(
        FOLDER,
        attention_variants,
        bottleneck,
        weighted_sum,
        query_key_value,
        stacked_heads,
        merged_projections,
        split_heads,
    )


def attention_variants():
    """The four mechanisms of the chapter, each built on the one before."""
    fig, ax = canvas(9.4, 1.75)
    steps = [
        ("3.3", "simplified\nself-attention", "weights from\ndot products", GREY),
        ("3.4", "self-attention", "+ trainable\nprojections", BLUE),
        ("3.5", "causal\nattention", "+ mask\n+ dropout", ORANGE),
        ("3.6", "multi-head\nattention", "+ several heads\nat once", GREEN),
    ]
    for i, (section, name, news, color) in enumerate(steps):
        left = 0.15 + 2.4 * i
        box(ax, left, 0.75, 1.85, 0.62, name, color, weight="bold")
        label(ax, left + 0.92, 1.57, section, size=9)
        label(ax, left + 0.92, 0.38, news, size=9, style="italic")
        if i:
            arrow(ax, (left - 0.5, 1.06), (left - 0.05, 1.06))
    return fig


def bottleneck():
    """A translator without attention (one vector carries everything) and one with it."""
    fig, ax = canvas(9.6, 4.3)
    source, target = ["le", "chat", "noir", "dort"], ["the", "black", "cat", "sleeps"]
    width, step = 0.85, 1.12
    for offset, title in [(0.15, "Without attention"), (5.05, "With attention")]:
        label(ax, offset + 2.1, 4.1, title, size=11, weight="bold")
        for i, (word, translation) in enumerate(zip(source, target, strict=True)):
            left = offset + i * step
            box(ax, left, 0.55, width, 0.45, f"state {i + 1}", BLUE, size=9)
            box(ax, left, 3.0, width, 0.45, f"step {i + 1}", GREEN, size=9)
            label(ax, left + width / 2, 0.1, word)
            label(ax, left + width / 2, 3.78, translation)
            arrow(ax, (left + width / 2, 0.22), (left + width / 2, 0.53))
            arrow(ax, (left + width / 2, 3.47), (left + width / 2, 3.66))
            if i:
                arrow(ax, (left - step + width, 0.78), (left, 0.78))
                arrow(ax, (left - step + width, 3.22), (left, 3.22))
    one_vector = (1.2, 1.75)
    box(ax, *one_vector, 2.2, 0.5, "one vector of fixed size", RED)
    arrow(ax, (0.15 + 3 * step + width / 2, 1.02), (3.1, 1.73), curve=0.15)
    arrow(ax, (1.5, 2.27), (0.15 + width / 2, 2.98), curve=0.15)
    for i, weight in enumerate([0.6, 2.2, 5.0, 0.6]):
        start, end = 5.05 + i * step + width / 2, 5.05 + step + width / 2
        arrow(ax, (start, 1.02), (end + 0.16 * (i - 1), 2.97), style="-")
        ax.patches[-1].set_linewidth(weight)
    label(ax, 8.6, 2.4, "thick line: large\nattention weight", size=9, style="italic")
    return fig


def softmax(scores):
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def weighted_sum():
    """The context vector of "journey": dot products, softmax, weighted sum."""
    fig, ax = canvas(9.6, 5.2)
    scores = INPUTS @ INPUTS[1]
    weights = softmax(scores)
    context = weights @ INPUTS
    left, step, width = 2.05, 1.25, 0.9
    for i, word in enumerate(WORDS):
        x = left + i * step
        middle = x + width / 2
        is_query = word == "journey"
        name = f"{word} (query)" if is_query else word
        label(ax, middle, 5.02, name, weight="bold" if is_query else "normal")
        vector(ax, x, 4.85, INPUTS[i], BLUE if is_query else WHITE, width)
        arrow(ax, (middle, 3.72), (middle, 3.4))
        box(ax, x, 2.98, width, 0.38, f"{scores[i]:.4f}", GREY, size=9)
        arrow(ax, (middle, 2.96), (middle, 2.64))
        box(ax, x, 2.22, width, 0.38, f"{weights[i]:.4f}", ORANGE, size=9)
        arrow(ax, (middle, 2.2), (5.6 + 0.09 * (i - 2.5), 1.33))
    vector(ax, 5.15, 1.3, context, GREEN, width)
    names = {
        4.3: "inputs x",
        3.17: "scores: dot product\nwith the query",
        2.41: "attention weights:\nsoftmax, sum 1",
        0.75: "context vector z of\n“journey”",
    }
    for y, name in names.items():
        label(ax, 1.85, y, name, ha="right", weight="bold", size=9.5)
    label(ax, 6.3, 0.75, "sum of weight × input\nover the six words", ha="left", style="italic")
    return fig


def vector(ax, left, top, numbers, color, width=0.9, digits=4):
    """Numbers below each other in cells of one colour."""
    if all(round(number, 2) == number for number in numbers):
        digits = 2
    rows = [[f"{number:.{digits}f}"] for number in numbers]
    cells(ax, left, top, rows, [[color]] * len(rows), width=width, height=0.36)


def query_key_value():
    """Shapes on the way from six inputs to the context vector of the second one."""
    fig, ax = canvas(9.6, 5.0)
    tops = {"query": 4.5, "key": 3.2, "value": 1.5}
    colors = {"query": BLUE, "key": ORANGE, "value": PURPLE}
    for name, top in tops.items():
        rows = 1 if name == "query" else 6
        grid(ax, 0.75, top, rows, 3, WHITE)
        label(ax, 1.85, top - rows * 0.1, "@", size=12)
        middle = top - rows * 0.1
        grid(ax, 2.1, middle + 0.3, 3, 2, GREY)
        label(ax, 2.38, middle - 0.45, f"W_{name}", size=9)
        label(ax, 2.9, middle, "=", size=12)
        grid(ax, 3.2, top, rows, 2, colors[name])
    label(ax, 1.2, 4.72, "x of “journey”", size=9)
    label(ax, 3.5, 4.72, "query", weight="bold")
    label(ax, 1.2, 3.4, "inputs", size=9)
    label(ax, 1.2, 1.7, "inputs", size=9)
    label(ax, 3.5, 3.4, "keys", weight="bold")
    label(ax, 3.5, 1.7, "values", weight="bold")
    for i, word in enumerate(WORDS):
        for top in (3.1, 1.4):
            label(ax, 0.68, top - i * 0.2, word, size=7.5, ha="right")
    grid(ax, 5.45, 3.2, 6, 1, GREY)
    label(ax, 5.6, 3.4, "scores", weight="bold")
    arrow(ax, (3.85, 4.4), (5.38, 3.1))
    arrow(ax, (3.85, 2.6), (5.38, 2.6))
    label(ax, 4.6, 2.38, "dot products", size=9, style="italic")
    arrow(ax, (5.82, 2.6), (7.0, 2.6))
    label(ax, 6.4, 2.8, "÷ √d_out,", size=9, style="italic")
    label(ax, 6.4, 2.38, "softmax", size=9, style="italic")
    grid(ax, 7.07, 3.2, 6, 1, RED)
    label(ax, 7.22, 3.4, "weights", weight="bold")
    arrow(ax, (3.85, 0.9), (8.35, 0.9))
    arrow(ax, (7.22, 1.97), (7.9, 0.98))
    label(ax, 6.0, 0.68, "sum of weight × value", size=9, style="italic")
    grid(ax, 8.42, 1.0, 1, 2, GREEN)
    label(ax, 8.75, 1.37, "context vector\nof “journey”", weight="bold")
    return fig


def grid(ax, left, top, rows, columns, color, width=0.29, height=0.2):
    """A matrix of which only the shape counts."""
    blank = [[""] * columns] * rows
    cells(ax, left, top, blank, [[color] * columns] * rows, width=width, height=height)


def stacked_heads():
    """Two causal heads read the same input; their outputs lie side by side."""
    fig, ax = canvas(9.4, 3.6)
    grid(ax, 0.35, 2.4, 6, 3, WHITE)
    label(ax, 0.79, 2.62, "input", weight="bold")
    label(ax, 0.79, 0.98, "(6, 3)", size=9)
    for y, number, color in [(2.1, 1, BLUE), (0.4, 2, ORANGE)]:
        box(ax, 2.3, y, 2.75, 1.1, "", WHITE)
        label(ax, 3.67, y + 1.28, f"head {number}: CausalAttention", weight="bold")
        for i, name in enumerate(["W_query", "W_key", "W_value"]):
            box(ax, 2.42 + i * 0.86, y + 0.62, 0.8, 0.36, name, GREY, size=8)
        box(ax, 2.42, y + 0.12, 2.52, 0.36, "mask, softmax, dropout", GREY, size=9)
        arrow(ax, (1.3, 1.8), (2.22, y + 0.55))
        grid(ax, 6.0, y + 1.15, 6, 2, color)
        label(ax, 6.29, y - 0.2, "(6, 2)", size=9)
        arrow(ax, (5.12, y + 0.55), (5.92, y + 0.55))
        arrow(ax, (6.66, y + 0.55), (7.75, 1.8 + (0.1 if number == 1 else -0.1)))
    grid(ax, 7.85, 2.4, 6, 2, BLUE)
    grid(ax, 8.43, 2.4, 6, 2, ORANGE)
    label(ax, 8.43, 2.8, "output", weight="bold")
    label(ax, 8.14, 2.53, "head 1", size=8)
    label(ax, 8.72, 2.53, "head 2", size=8)
    label(ax, 8.43, 0.98, "(6, 4)", size=9)
    label(ax, 7.22, 2.62, "torch.cat", size=9, style="italic")
    return fig


def merged_projections():
    """Two small query projections give the same columns as one large one."""
    fig, ax = canvas(9.2, 3.4)
    for y, color, number in [(3.0, BLUE, 1), (1.45, ORANGE, 2)]:
        grid(ax, 0.3, y, 6, 3, WHITE)
        label(ax, 1.38, y - 0.6, "@", size=12)
        grid(ax, 1.6, y - 0.3, 3, 2, color)
        label(ax, 2.4, y - 0.6, "=", size=12)
        grid(ax, 2.65, y, 6, 2, color)
        label(ax, 3.35, y - 0.6, f"queries of\nhead {number}", size=9, ha="left")
    ax.plot([4.6, 4.6], [0.2, 3.0], color="#888888", linewidth=1, linestyle="--")
    grid(ax, 4.95, 2.22, 6, 3, WHITE)
    label(ax, 6.03, 1.62, "@", size=12)
    for offset, color, number in [(0, BLUE, 1), (0.58, ORANGE, 2)]:
        grid(ax, 6.25 + offset, 1.92, 3, 2, color)
        grid(ax, 7.9 + offset, 2.22, 6, 2, color)
        label(ax, 8.19 + offset, 2.35, f"head {number}", size=8)
    label(ax, 7.65, 1.62, "=", size=12)
    label(ax, 6.83, 1.15, "one W_query", size=9)
    label(ax, 8.48, 0.86, "queries", size=9)
    label(ax, 2.4, 3.22, "wrapper: one product per head", weight="bold")
    label(ax, 7.0, 3.22, "weight split: one product", weight="bold")
    return fig


def split_heads():
    """view cuts each token's row in two; transpose puts the rows of one head together."""
    fig, ax = canvas(9.6, 4.1)
    tokens, two = ["a", "b", "c"], [BLUE, ORANGE]
    names = {t: [f"{t}{i}" for i in range(1, 5)] for t in tokens}
    rows = [names[t] for t in tokens]
    cells(ax, 0.75, 2.55, rows, [[BLUE, BLUE, ORANGE, ORANGE]] * 3, width=0.45)
    for i, token in enumerate(tokens):
        label(ax, 0.65, 2.35 - i * 0.4, f"token {token}", size=9, ha="right")
        top = 3.35 - i * 1.05
        halves = [names[token][:2], names[token][2:]]
        cells(ax, 4.35, top, halves, [[color] * 2 for color in two], width=0.45)
        label(ax, 4.25, top - 0.4, f"token {token}", size=9, ha="right")
    for number, color in enumerate(two):
        top = 3.35 - number * 1.65
        half = [names[t][2 * number : 2 * number + 2] for t in tokens]
        cells(ax, 7.9, top, half, [[color] * 2] * 3, width=0.45)
        label(ax, 7.8, top - 0.6, f"head {number + 1}", weight="bold", ha="right")
    arrow(ax, (2.7, 1.95), (3.55, 1.95))
    label(ax, 3.12, 2.15, ".view", size=9, style="italic")
    arrow(ax, (5.5, 1.95), (7.0, 1.95))
    label(ax, 6.2, 2.15, ".transpose(1, 2)", size=9, style="italic")
    shapes = {
        1.6: "(b, num_tokens, d_out)\n(1, 3, 4)",
        4.6: "(b, num_tokens, num_heads, head_dim)\n(1, 3, 2, 2)",
        7.95: "(b, num_heads, num_tokens, head_dim)\n(1, 2, 3, 2)",
    }
    for x, shape in shapes.items():
        label(ax, x, 3.85, shape, size=8.5)
    label(ax, 4.8, 0.12, "a1 to a4: the numbers of token a", size=9, style="italic")
    return fig


if __name__ == "__main__":
    main()
