"""Diagrams of chapter 6: ``python tools/figures/ch06.py`` writes them as SVG files."""

from drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    WHITE,
    arrow,
    box,
    canvas,
    cells,
    label,
    save_all,
)

FOLDER = "ch06/01_main-chapter-code/figures"


def main() -> None:
    save_all(
        FOLDER,
        two_kinds_of_finetuning,
        three_parts,
        pad_or_cut,
        frozen_and_trained,
        new_head,
        last_token,
        logits_to_label,
        one_index,
        training_loop,
        reading_mistakes,
    )


def two_kinds_of_finetuning():
    """Instruction finetuning answers in words, classification finetuning with one of two labels."""
    fig, ax = canvas(7.2, 2.4)
    question = "Is this message spam?\nYou won a prize!"
    rows = [
        (1.35, question, "instruction-\nfinetuned GPT", "Yes, it is."),
        (0.2, "You won a prize!", "classification-\nfinetuned GPT", "spam"),
    ]
    for bottom, text, model, answer in rows:
        box(ax, 0.1, bottom, 2.3, 0.8, text, WHITE)
        arrow(ax, (2.45, bottom + 0.4), (2.95, bottom + 0.4))
        box(ax, 3.0, bottom, 1.7, 0.8, model, BLUE, weight="bold")
        arrow(ax, (4.75, bottom + 0.4), (5.25, bottom + 0.4))
        box(ax, 5.3, bottom, 1.1, 0.8, answer, ORANGE)
    label(ax, 6.85, 1.75, "any\ntext", size=9)
    label(ax, 6.85, 0.6, "one of\n2 labels", size=9)
    return fig


def three_parts():
    """What each part of the data is for."""
    fig, ax = canvas(7.2, 2.0)
    parts = [
        (0.1, 4.4, "training, 70 %", BLUE, "the weights learn from these"),
        (4.6, 0.9, "10 %", GREEN, "validation:\nwatch, choose\nsettings"),
        (5.6, 1.5, "test, 20 %", ORANGE, "asked once,\nat the very end"),
    ]
    label(ax, 3.6, 1.8, "1,494 messages, half of them spam, shuffled", size=10, weight="bold")
    for left, width, text, color, use in parts:
        box(ax, left, 1.0, width, 0.5, text, color)
        label(ax, left + width / 2, 0.5, use, size=9)
    return fig


def pad_or_cut():
    """Three messages as rows of one length: padded, just right, and cut."""
    fig, ax = canvas(7.2, 2.3)
    rows = [
        (["Ok", " lar", "..."], "padded"),
        (["Free", " entry", " in", " 2", " a", " week"], "fits"),
        (["Go", " until", " j", "ur", "ong", " point", " crazy", ".."], "cut"),
    ]
    for i, (words, what) in enumerate(rows):
        row = [word.strip() for word in words[:6]] + ["pad"] * (6 - len(words))
        colors = [BLUE] * min(len(words), 6) + [GREY] * (6 - len(words))
        left_out = [word.strip() for word in words[6:]]
        cells(ax, 0.9, 1.9 - i * 0.6, [row], [colors], width=0.72)
        label(ax, 0.75, 1.7 - i * 0.6, what, ha="right")
        if left_out:
            cells(ax, 5.35, 1.9 - i * 0.6, [left_out], [[RED] * len(left_out)], width=0.72)
    ax.plot([5.29, 5.29], [0.2, 2.0], color=INK, linestyle="--", linewidth=1)
    label(ax, 5.29, 2.15, "max_length", size=9)
    return fig


def frozen_and_trained():
    """What freezing means for one weight: no gradient, no update."""
    fig, ax = canvas(7.2, 2.0)
    rows = [
        (1.2, "trainable weight", GREEN, "gradient", "optimizer moves it"),
        (0.2, "frozen weight", GREY, "no gradient", "stays what it was"),
    ]
    for bottom, name, color, gradient, effect in rows:
        box(ax, 0.1, bottom, 1.9, 0.6, name, color, weight="bold")
        box(ax, 2.7, bottom, 1.7, 0.6, gradient, color if color == GREEN else WHITE)
        box(ax, 5.1, bottom, 1.9, 0.6, effect, color if color == GREEN else WHITE)
        arrow(ax, (2.05, bottom + 0.3), (2.65, bottom + 0.3))
        arrow(ax, (4.45, bottom + 0.3), (5.05, bottom + 0.3))
    label(ax, 2.35, 1.72, "backward", size=8)
    label(ax, 4.75, 1.72, "step", size=8)
    return fig


def new_head():
    """Which layers are frozen, which are trained, and which one is new."""
    fig, ax = canvas(5.9, 3.5)
    layers = [
        ("embeddings", GREY, "frozen"),
        ("first transformer blocks", GREY, "frozen"),
        ("last transformer blocks", GREEN, "trained: one or a few"),
        ("final normalization", GREEN, "trained"),
        ("output layer: 2 logits", ORANGE, "new, trained"),
    ]
    for i, (text, color, state) in enumerate(layers):
        bottom = 0.15 + i * 0.67
        box(ax, 0.2, bottom, 3.5, 0.45, text, color)
        label(ax, 3.9, bottom + 0.22, state, ha="left")
        if i:
            arrow(ax, (1.95, bottom - 0.21), (1.95, bottom - 0.01))
    return fig


def last_token():
    """The causal mask: only the last token has seen all tokens."""
    fig, ax = canvas(5.4, 2.8)
    words = ["Do", " you", " have", " time"]
    for i, word in enumerate(words):
        bottom = 2.3 - i * 0.5
        label(ax, 0.9, bottom - 0.2, word.strip(), ha="right")
        colors = [[BLUE if j <= i else WHITE for j in range(4)]]
        cells(ax, 1.1, bottom, [["sees" if j <= i else "" for j in range(4)]], colors)
    for j, word in enumerate(words):
        label(ax, 1.37 + j * 0.55, 2.5, word.strip(), size=9)
    arrow(ax, (3.35, 0.6), (3.85, 0.6))
    box(ax, 3.9, 0.3, 1.4, 0.6, "2 logits:\nspam or ham", ORANGE)
    return fig


def logits_to_label():
    """From the last token's two logits to a label, with numbers."""
    fig, ax = canvas(7.4, 2.0)
    steps = [
        (0.1, [["-1.2"], ["2.1"]], "2 logits", WHITE),
        (2.6, [["0.04"], ["0.96"]], "2 probabilities", BLUE),
    ]
    for left, rows, title, color in steps:
        label(ax, left + 0.9, 1.75, title, weight="bold")
        cells(ax, left + 0.55, 1.5, rows, [[color], [color]], width=0.75)
        for i, name in enumerate(("ham", "spam")):
            label(ax, left + 0.45, 1.3 - i * 0.4, name, ha="right", size=9)
    arrow(ax, (1.5, 1.1), (2.55, 1.1))
    label(ax, 2.02, 1.28, "softmax", size=9)
    arrow(ax, (4.0, 1.1), (5.1, 1.1))
    label(ax, 4.55, 1.28, "argmax", size=9)
    box(ax, 5.15, 0.85, 0.6, 0.5, "1", ORANGE)
    arrow(ax, (5.8, 1.1), (6.3, 1.1))
    box(ax, 6.35, 0.85, 0.95, 0.5, "spam", ORANGE, weight="bold")
    label(
        ax, 3.7, 0.35, "softmax keeps the order: the larger logit is the answer either way", size=9
    )
    return fig


def one_index():
    """Chapter 5's loss looks at all positions, chapter 6's at the last one."""
    fig, ax = canvas(7.2, 2.3)
    rows = [
        (1.35, "chapter 5", [BLUE] * 6, "logits.flatten(0, 1)\n6 targets: the next tokens"),
        (0.35, "chapter 6", [GREY] * 5 + [ORANGE], "logits[:, -1, :]\n1 target: the label"),
    ]
    for bottom, name, colors, text in rows:
        label(ax, 1.0, bottom + 0.2, name, ha="right", weight="bold")
        cells(ax, 1.15, bottom + 0.4, [list("123456")], [colors])
        label(ax, 4.65, bottom + 0.2, text, ha="left", size=9, family="monospace")
    label(ax, 2.8, 2.05, "positions that count for the loss are coloured", size=9)
    return fig


def training_loop():
    """The four actions of each update, and what is measured beside them."""
    fig, ax = canvas(7.4, 2.5)
    steps = [
        "forget old\ngradients",
        "loss of\na batch",
        "backward:\nnew gradients",
        "step: move\nthe weights",
    ]
    for i, text in enumerate(steps):
        box(ax, 0.1 + i * 1.85, 1.2, 1.55, 0.7, text, GREEN, size=9)
        if i:
            arrow(ax, (-0.2 + i * 1.85, 1.55), (0.08 + i * 1.85, 1.55))
    arrow(ax, (6.4, 1.95), (0.9, 1.95), curve=0.08)
    label(ax, 3.7, 2.35, "next batch", size=9)
    box(ax, 0.1, 0.2, 3.4, 0.6, "every eval_freq updates: both losses", BLUE, size=9)
    box(ax, 3.8, 0.2, 3.4, 0.6, "after each epoch: both accuracies", ORANGE, size=9)
    return fig


def reading_mistakes():
    """The four cells of a confusion matrix in words."""
    fig, ax = canvas(5.6, 2.7)
    texts = [["ham, let through", "ham, held back"], ["spam, let through", "spam, held back"]]
    colors = [[GREEN, RED], [ORANGE, GREEN]]
    cells(ax, 1.1, 2.1, texts, colors, width=2.1, height=0.75, size=10)
    for i, name in enumerate(("ham", "spam")):
        label(ax, 1.0, 1.72 - i * 0.75, name, ha="right")
        label(ax, 2.15 + i * 2.1, 2.25, name)
    label(ax, 3.2, 2.55, "what the model says", weight="bold")
    label(ax, 0.25, 1.35, "what it is", weight="bold", rotation=90)
    label(ax, 3.2, 0.3, "diagonal: right; the other two are different mistakes", size=9)
    return fig


if __name__ == "__main__":
    main()
