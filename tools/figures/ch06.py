"""Diagrams of chapter 6: ``python tools/figures/ch06.py`` writes them as SVG files."""

from drawing import BLUE, GREEN, GREY, ORANGE, WHITE, arrow, box, canvas, cells, label, save_all

FOLDER = "ch06/01_main-chapter-code/figures"


def main() -> None:
    save_all(FOLDER, two_kinds_of_finetuning, new_head, last_token)


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


def new_head():
    """Which layers are frozen, which are trained, and which one is new."""
    fig, ax = canvas(5.6, 3.5)
    layers = [
        ("token and position embeddings", GREY, "frozen"),
        ("all transformer blocks but the last", GREY, "frozen"),
        ("last transformer block", GREEN, "trained"),
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


if __name__ == "__main__":
    main()
