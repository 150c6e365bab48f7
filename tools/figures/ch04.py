"""Diagrams of chapter 4: ``python tools/figures/ch04.py`` writes them as SVG files."""

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

FOLDER = "ch04/01_main-chapter-code/figures"


def main() -> None:
    save_all(
        FOLDER,
        building_blocks,
        gpt_model,
        feed_forward,
        shortcuts,
        transformer_block,
        next_token,
        next_token_loop,
    )


def building_blocks():
    """The chapter's parts, and which of them each part is made of."""
    fig, ax = canvas(7.6, 3.0)
    parts = [
        ("4.2", "LayerNorm", 2.35, PURPLE),
        ("4.3", "GELU,\nFeedForward", 1.6, ORANGE),
        ("4.4", "shortcuts", 0.85, GREEN),
        ("chapter 3", "MultiHead-\nAttention", 0.1, BLUE),
    ]
    for section, name, bottom, color in parts:
        box(ax, 1.05, bottom, 1.5, 0.55, name, color, weight="bold", size=9.5)
        label(ax, 0.95, bottom + 0.27, section, size=9, ha="right")
        arrow(ax, (2.6, bottom + 0.27), (3.32, 1.8 + (bottom - 1.2) * 0.25))
    wholes = [
        ("4.5", "Transformer-\nBlock", 3.4, GREEN, 1.25),
        ("4.6", "GPTModel", 5.05, RED, 1.1),
        ("4.7", "generated\ntext", 6.5, WHITE, 0.95),
    ]
    for section, name, left, color, width in wholes:
        weight = "normal" if section == "4.7" else "bold"
        box(ax, left, 1.4, width, 0.8, name, color, weight=weight, size=9.5)
        label(ax, left + width / 2, 2.35, section, size=9)
    arrow(ax, (4.67, 1.8), (5.02, 1.8))
    arrow(ax, (6.17, 1.8), (6.47, 1.8))
    box(ax, 4.75, 0.35, 1.7, 0.6, "plan of the model,\nwith placeholders", WHITE, size=9.5)
    label(ax, 4.65, 0.65, "4.1", size=9, ha="right")
    arrow(ax, (5.6, 0.97), (5.6, 1.38))
    return fig


def gpt_model():
    """From the text at the bottom to the logits at the top, with shapes at the right."""
    fig, ax = canvas(8.2, 7.4)
    left, width, middle = 2.2, 3.2, 3.8
    layers = [  # bottom edge, height, text, colour, attribute of GPTModel, shape of the output
        (
            0.95,
            0.45,
            "tokenizer (chapter 2)",
            GREY,
            "",
            "(b, num_tokens)\nids, e.g. 6109 3626 6100 345",
        ),
        (1.75, 0.45, "token embedding", BLUE, "tok_emb", "(b, num_tokens, 768)"),
        (2.55, 0.45, "+ positional embedding", BLUE, "pos_emb", "(b, num_tokens, 768)"),
        (3.35, 0.45, "dropout", GREY, "drop_emb", "(b, num_tokens, 768)"),
        (4.3, 0.75, "transformer block", GREEN, "trf_blocks", "(b, num_tokens, 768)"),
        (5.4, 0.45, "final layer normalization", PURPLE, "final_norm", "(b, num_tokens, 768)"),
        (6.2, 0.45, "linear output layer", ORANGE, "out_head", "(b, num_tokens, 50257)\nlogits"),
    ]
    label(ax, middle, 0.3, "“Every effort moves you”", size=11, style="italic")
    arrow(ax, (middle, 0.5), (middle, 0.93))
    for i, (bottom, height, text, color, attribute, shape) in enumerate(layers):
        if attribute == "trf_blocks":
            for back in (0.16, 0.08):  # more of the same behind it
                box(ax, left + back, bottom + back, width, height, "", color)
        weight = "bold" if attribute == "trf_blocks" else "normal"
        box(ax, left, bottom, width, height, text, color, weight=weight, size=10.5)
        label(ax, left - 0.2, bottom + height / 2, attribute, ha="right", family="monospace")
        label(ax, left + width + 0.35, bottom + height / 2, shape, ha="left", size=9.5)
        top = bottom + height + (0.16 if attribute == "trf_blocks" else 0)
        following = layers[i + 1][0] if i + 1 < len(layers) else 7.0
        arrow(ax, (middle, top + 0.02), (middle, following - 0.02))
    label(ax, left + width - 0.12, 4.42, "12 ×", size=10.5, ha="right", weight="bold")
    label(ax, middle, 7.15, "scores for the token after each position", size=10, style="italic")
    return fig


def feed_forward():
    """Widths inside of the feed-forward module."""
    fig, ax = canvas(9.0, 2.5)
    middle = 1.35
    columns = [  # left edge, height, width of the vector
        (0.4, 0.6, "768"),
        (2.95, 2.0, "3,072"),
        (5.5, 2.0, "3,072"),
        (8.05, 0.6, "768"),
    ]
    colors = [BLUE, ORANGE, ORANGE, BLUE]
    for (left, height, name), color in zip(columns, colors, strict=True):
        box(ax, left, middle - height / 2, 0.5, height, "", color)
        label(ax, left + 0.25, 0.15, name, weight="bold")
    steps = [(0.95, "layers[0]\nLinear"), (3.5, "layers[1]\nGELU"), (6.05, "layers[2]\nLinear")]
    for left, name in steps:
        arrow(ax, (left, middle), (left + 1.95, middle))
        label(ax, left + 0.97, middle + 0.35, name, size=9.5)
    for left, text in [(0.95, "expand × 4"), (3.5, "bend each number"), (6.05, "contract")]:
        label(ax, left + 0.97, middle - 0.25, text, size=9, style="italic")
    return fig


def shortcuts():
    """Five layers in a chain; below, the same chain with a path around each layer."""
    fig, ax = canvas(9.6, 3.1)
    rows = [(2.15, "without\nshortcuts", False), (0.55, "with\nshortcuts", True)]
    for bottom, name, use_shortcut in rows:
        middle = bottom + 0.3
        label(ax, 0.62, middle, name, weight="bold")
        label(ax, 1.4, middle, "x", size=11, style="italic")
        arrow(ax, (1.5, middle), (1.88, middle))
        for i in range(5):
            left = 1.9 + i * 1.5
            box(ax, left, bottom, 0.8, 0.6, "Linear\nGELU", BLUE if i < 4 else GREY, size=9)
            if i == 4:
                arrow(ax, (left + 0.82, middle), (left + 1.2, middle))
                continue
            if not use_shortcut:
                arrow(ax, (left + 0.82, middle), (left + 1.48, middle))
                continue
            plus = left + 1.13
            arrow(ax, (left + 0.82, middle), (plus - 0.11, middle))
            ax.plot(plus, middle, "o", markersize=14, color=GREEN, markeredgecolor="#22303c")
            label(ax, plus, middle - 0.01, "+", size=11)
            arrow(ax, (plus + 0.12, middle), (left + 1.48, middle))
            ax.plot([left - 0.2] * 2, [middle, middle + 0.6], color="#22303c", linewidth=1.2)
            ax.plot([left - 0.2, plus], [middle + 0.6] * 2, color="#22303c", linewidth=1.2)
            arrow(ax, (plus, middle + 0.61), (plus, middle + 0.12))
    label(ax, 5.3, 0.2, "the last layer changes the width from 3 to 1: no sum there", size=9)
    return fig


def transformer_block():
    """Two branches, each beside a shortcut; data flow upwards."""
    fig, ax = canvas(8.0, 7.3)
    left, width, middle, side = 2.0, 2.7, 3.35, 1.3
    box(ax, 0.75, 0.62, 4.3, 6.02, "", "#f6faf6")
    halves = [
        (0.95, [("LayerNorm", PURPLE, "norm1"), ("masked multi-head\nattention", BLUE, "att")]),
        (3.8, [("LayerNorm", PURPLE, "norm2"), ("feed-forward", ORANGE, "ff")]),
    ]
    label(ax, middle, 0.25, "(b, num_tokens, emb_dim)", size=9.5)
    arrow(ax, (middle, 0.4), (middle, 1.28))
    for bottom, named in halves:
        for (text, color, attribute), y in zip(named, (0.35, 0.95), strict=True):
            height = 0.42 if y < 0.9 else 0.55
            box(ax, left, bottom + y, width, height, text, color)
            label(ax, 5.25, bottom + y + height / 2, attribute, ha="left", family="monospace")
        box(ax, left, bottom + 1.68, width, 0.35, "dropout", GREY)
        label(ax, 5.25, bottom + 1.85, "drop_shortcut", ha="left", family="monospace")
        plus = bottom + 2.37
        ax.plot(middle, plus, "o", markersize=17, color=GREEN, markeredgecolor="#22303c")
        label(ax, middle, plus - 0.01, "+", size=13)
        arrow(ax, (middle, bottom + 0.79), (middle, bottom + 0.94))
        arrow(ax, (middle, bottom + 1.51), (middle, bottom + 1.67))
        arrow(ax, (middle, bottom + 2.04), (middle, plus - 0.13))
        ax.plot([middle, side], [bottom + 0.12] * 2, color="#22303c", linewidth=1.2)
        ax.plot([side, side], [bottom + 0.12, plus], color="#22303c", linewidth=1.2)
        arrow(ax, (side, plus), (middle - 0.14, plus))
        label(ax, side - 0.1, bottom + 1.25, "shortcut", size=9, rotation=90, ha="right")
    arrow(ax, (middle, 3.46), (middle, 4.13))
    arrow(ax, (middle, 6.31), (middle, 6.95))
    label(ax, middle, 7.1, "(b, num_tokens, emb_dim)", size=9.5)
    notes = {2.15: "tokens look at\nearlier tokens", 5.0: "each token\nby itself"}
    for y, text in notes.items():
        label(ax, 6.15, y, text, size=9, style="italic", ha="left")
    return fig


def next_token():
    """The steps from four ids to a fifth one, with the numbers of section 4.7."""
    fig, ax = canvas(9.4, 4.4)
    words, ids = ["“Hello”", "“,”", "“ I”", "“ am”"], ["15496", "11", "314", "716"]
    columns = ["0", "1", "…", "27018", "…", "50256"]
    logits = [
        ["-0.29", "-0.81", "…", "0.85", "…", "-0.81"],
        ["1.22", "-0.48", "…", "0.26", "…", "-0.36"],
        ["1.04", "-0.09", "…", "-0.09", "…", "0.00"],
        ["-0.64", "-0.15", "…", "2.50", "…", "-0.88"],
    ]
    top, left = 3.55, 4.7
    label(ax, 1.4, top + 0.2, "token ids", weight="bold")
    for i, word in enumerate(words):
        label(ax, 0.95, top - 0.2 - 0.4 * i, word, ha="right", size=9.5)
    cells(ax, 1.05, top, [[i] for i in ids], [[BLUE]] * 4, width=0.7)
    arrow(ax, (1.82, top - 0.8), (2.4, top - 0.8))
    box(ax, 2.45, top - 1.25, 1.3, 0.9, "GPTModel", GREEN, weight="bold")
    arrow(ax, (3.8, top - 0.8), (left - 0.07, top - 0.8))
    label(
        ax,
        left + 2.1,
        top + 0.65,
        "logits: a column for each token of the vocabulary",
        weight="bold",
    )
    for i, column in enumerate(columns):
        label(ax, left + 0.35 + 0.7 * i, top + 0.2, column, size=9)
    colors = [[WHITE] * 6] * 3 + [[ORANGE] * 6]
    cells(ax, left, top, logits, colors, width=0.7)
    choice = left + 3.5 * 0.7
    arrow(ax, (choice, top - 1.62), (choice, top - 2.13))
    label(
        ax,
        choice - 0.15,
        top - 1.87,
        "softmax of the last row",
        size=9.5,
        ha="right",
        style="italic",
    )
    shares = ["0.0009 %", "0.0015 %", "…", "0.0205 %", "…", "0.0007 %"]
    row = [ORANGE] * 3 + [RED] + [ORANGE] * 2
    cells(ax, left, top - 2.15, [shares], [row], width=0.7, size=8)
    arrow(ax, (choice, top - 2.57), (choice, top - 2.98))
    label(
        ax, choice - 0.15, top - 2.77, "argmax: the largest", size=9.5, ha="right", style="italic"
    )
    cells(ax, choice - 0.35, top - 3.0, [["27018"]], [[RED]], width=0.7)
    label(ax, choice + 0.5, top - 3.2, "“ Feature”", ha="left", size=9.5)
    ax.plot([choice - 0.38, 1.4], [top - 3.2] * 2, color="#22303c", linewidth=1.2)
    arrow(ax, (1.4, top - 3.21), (1.4, top - 1.65))
    label(ax, 3.2, top - 3.0, "append, and start again", size=9.5, style="italic")
    return fig


def next_token_loop():
    """Three rounds: each new token becomes part of the next round's input."""
    fig, ax = canvas(9.6, 3.4)
    tokens = ["Hello", ",", " I", " am", " Feature", "iman", " Bye"]
    width, model = 0.9, 6.7
    for number in range(3):
        known, middle = 4 + number, 2.85 - 1.1 * number
        label(ax, 0.75, middle, f"round {number + 1}", ha="right", weight="bold", size=9.5)
        row = [token.strip() for token in tokens[:known]]
        cells(ax, 0.9, middle + 0.2, [row], [[BLUE] * 4 + [ORANGE] * number], width=width)
        arrow(ax, (0.95 + known * width, middle), (model - 0.05, middle))
        box(ax, model, middle - 0.27, 1.0, 0.54, "GPTModel", GREEN, size=9.5, weight="bold")
        arrow(ax, (model + 1.03, middle), (model + 1.45, middle))
        cells(ax, model + 1.5, middle + 0.2, [[tokens[known].strip()]], [[ORANGE]], width=width)
        if number < 2:
            start, end = model + 1.5 + width / 2, 0.9 + (known + 0.5) * width
            ax.plot([start, start], [middle - 0.22, middle - 0.5], color="#22303c", linewidth=1.2)
            ax.plot([start, end], [middle - 0.5] * 2, color="#22303c", linewidth=1.2)
            arrow(ax, (end, middle - 0.49), (end, middle - 0.88))
    label(ax, 4.2, 0.15, "… until max_new_tokens are written", size=9.5, style="italic")
    return fig


if __name__ == "__main__":
    main()
