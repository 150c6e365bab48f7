"""Diagrams of the Llama notebooks: ``python tools/figures/llama.py`` writes them as SVG files."""

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
    label,
    save_all,
)

FOLDER = "ch05/07_gpt_to_llama/figures"


def main() -> None:
    save_all(FOLDER, gpt2_and_llama2, shared_keys)


def gpt2_and_llama2():
    """The two models side by side; what differs is orange."""
    fig, ax = canvas(8.6, 6.3)
    rows = [  # bottom edge, GPT-2, Llama 2, colour where both agree (None: they differ)
        (0.55, "token embedding", "token embedding", BLUE),
        (1.15, "+ table of positions, dropout", "", None),
        (1.95, "LayerNorm", "RMSNorm", None),
        (2.5, "attention\nbiases, dropout", "attention\nno biases, rotary positions", None),
        (3.55, "LayerNorm", "RMSNorm", None),
        (
            4.1,
            "GELU(W x) W\nhidden size 4 × width",
            "(SiLU(W x) · V x) W\nhidden size 2.7 × width",
            None,
        ),
        (5.15, "LayerNorm", "RMSNorm", None),
        (5.7, "output layer", "output layer", BLUE),
    ]
    for left, name in ((0.7, "GPT-2"), (4.7, "Llama 2")):
        label(ax, left + 1.6, 0.25, name, size=12, weight="bold")
        box(ax, left - 0.35, 1.8, 3.9, 3.12, "", GREY)
        label(ax, left + 3.48, 4.8, "× layers", size=9, ha="right")
        parts = [row for row in rows if row[1 if name == "GPT-2" else 2]]
        for (bottom, gpt, llama, color), above in zip(parts, [*parts[1:], None], strict=True):
            text = gpt if name == "GPT-2" else llama
            height = 0.62 if "\n" in text else 0.38
            box(ax, left, bottom, 3.2, height, text, color or ORANGE, size=9.5)
            if above:
                arrow(ax, (left + 1.6, bottom + height), (left + 1.6, above[0]))
        for start, end in ((1.88, 3.34), (3.48, 4.94)):  # shortcuts
            side = left - 0.2
            ax.plot([left + 1.6, side, side], [start, start, end], color="#22303c", linewidth=1)
            arrow(ax, (side, end), (left + 1.6, end))
    return fig


def shared_keys():
    """Which query heads look at which keys and values."""
    fig, ax = canvas(8.6, 2.5)
    variants = [
        (0.1, "multi-head: 4 and 4", 4),
        (3.05, "grouped-query: 4 and 2", 2),
        (6.0, "multi-query: 4 and 1", 1),
    ]
    for left, name, groups in variants:
        label(ax, left + 1.25, 2.3, name, size=10, weight="bold")
        for head in range(4):
            x = left + 0.65 * head
            box(ax, x, 1.45, 0.55, 0.5, f"q{head}", BLUE, size=10)
            group = head * groups // 4
            center = left + 0.275 + 0.65 * ((group + 0.5) * 4 / groups - 0.5)
            arrow(ax, (x + 0.275, 1.45), (center, 0.87))
        for group in range(groups):
            center = left + 0.275 + 0.65 * ((group + 0.5) * 4 / groups - 0.5)
            colors = (GREEN, PURPLE, RED, WHITE)
            box(ax, center - 0.27, 0.35, 0.55, 0.5, f"k{group}\nv{group}", colors[group], size=9)
    label(ax, 4.3, 0.12, "the cache holds the lower row only", size=9.5, style="italic")
    return fig


if __name__ == "__main__":
    main()
