"""Diagrams of appendix E: ``python tools/figures/appendix_e.py`` writes them as SVG files."""

from drawing import BLUE, GREEN, GREY, ORANGE, WHITE, arrow, box, canvas, label, plt, save_all

FOLDER = "appendix-E/01_main-chapter-code/figures"


def main() -> None:
    save_all(FOLDER, full_and_lora, lora_in_a_block, merging, adapters)


def matrix(ax, x, y, width, height, text, color, shape):
    """A matrix with its name inside and its shape below."""
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=color, edgecolor="black"))
    label(ax, x + width / 2, y + height / 2, text, size=11)
    label(ax, x + width / 2, y - 0.2, shape, size=8)


def full_and_lora():
    """Left: the change of W is a matrix of its size. Right: it is a product of two thin ones."""
    fig, ax = canvas(8.6, 3.1)
    label(ax, 1.9, 2.85, "Full finetuning", size=11, weight="bold")
    matrix(ax, 0.3, 0.8, 1.4, 1.4, "$W$", GREY, "768 × 768, pretrained")
    label(ax, 2.0, 1.5, "+", size=14)
    matrix(ax, 2.3, 0.8, 1.4, 1.4, "$\\Delta W$", ORANGE, "768 × 768, learned")
    label(ax, 2.0, 0.2, "589,824 numbers to learn", size=9)
    ax.plot([4.15, 4.15], [0.1, 2.95], color="black", linewidth=0.8, linestyle=":")
    label(ax, 6.4, 2.85, "LoRA, rank 16", size=11, weight="bold")
    matrix(ax, 4.6, 0.8, 1.4, 1.4, "$W$", GREY, "768 × 768, frozen")
    label(ax, 6.25, 1.5, "+", size=14)
    matrix(ax, 6.5, 0.8, 0.16, 1.4, "", GREEN, "A: 768 × 16")
    label(ax, 6.82, 1.5, "·", size=14)
    matrix(ax, 7.0, 1.42, 1.4, 0.16, "", GREEN, "B: 16 × 768")
    label(ax, 6.4, 0.2, "2 · 768 · 16 = 24,576 numbers to learn", size=9)
    return fig


def lora_in_a_block():
    """The path of one input through a linear layer and its low-rank change."""
    fig, ax = canvas(6.6, 2.9)
    box(ax, 0.1, 1.15, 1.0, 0.6, "input $x$\n768", WHITE)
    arrow(ax, (1.15, 1.55), (1.75, 2.15))
    arrow(ax, (1.15, 1.35), (1.75, 0.75))
    box(ax, 1.8, 1.9, 2.7, 0.6, "linear layer, frozen\n768 → 768", GREY)
    box(ax, 1.8, 0.4, 0.8, 0.6, "$A$\n768 → 16", GREEN, size=9)
    arrow(ax, (2.62, 0.7), (2.88, 0.7))
    box(ax, 2.9, 0.4, 0.8, 0.6, "$B$\n16 → 768", GREEN, size=9)
    arrow(ax, (3.72, 0.7), (3.98, 0.7))
    box(ax, 4.0, 0.4, 0.6, 0.6, r"$\cdot\,\frac{\alpha}{r}$", BLUE, size=12)
    label(ax, 2.2, 0.18, "random", size=8)
    label(ax, 3.3, 0.18, "zeros at first", size=8)
    arrow(ax, (4.55, 2.15), (5.1, 1.6))
    arrow(ax, (4.65, 0.75), (5.1, 1.3))
    label(ax, 5.2, 1.45, "+", size=16)
    arrow(ax, (5.35, 1.45), (5.65, 1.45))
    box(ax, 5.7, 1.15, 0.8, 0.6, "output\n768", ORANGE)
    return fig


def merging():
    """Beside the weight while one trains, inside of it when one is done."""
    fig, ax = canvas(7.6, 2.3)
    label(ax, 1.7, 2.1, "training: beside it", weight="bold")
    matrix(ax, 0.5, 0.6, 1.0, 1.0, "$W$", GREY, "frozen")
    label(ax, 1.75, 1.1, "+", size=14)
    matrix(ax, 2.0, 0.6, 0.14, 1.0, "", GREEN, "$A$")
    matrix(ax, 2.35, 1.03, 1.0, 0.14, "", GREEN, "$B$")
    arrow(ax, (3.6, 1.3), (4.5, 1.3))
    label(ax, 4.05, 1.5, "merge_lora", size=8.5)
    arrow(ax, (4.5, 0.9), (3.6, 0.9))
    label(ax, 4.05, 0.7, "unmerge_lora", size=8.5)
    label(ax, 5.6, 2.1, "use: inside of it", weight="bold")
    matrix(ax, 4.9, 0.6, 1.0, 1.0, r"$W + \frac{\alpha}{r} A B$", BLUE, "one product per layer")
    label(ax, 6.15, 1.1, "and, kept: $W$, $B$", size=8.5, ha="left")
    return fig


def adapters():
    """One pretrained model, and a small file for each task."""
    fig, ax = canvas(7.2, 2.2)
    box(ax, 0.3, 0.5, 2.2, 1.2, "pretrained model\n52 MB (GPT-2: 560 MB)", GREY)
    for y, name, color in ((1.5, "spam", GREEN), (0.9, "reviews", ORANGE), (0.3, "topics", BLUE)):
        box(ax, 3.6, y, 1.9, 0.42, f"adapter: {name}", color, size=9)
        arrow(ax, (3.55, y + 0.21), (2.55, 1.1))
    label(ax, 5.65, 1.1, "1.3 MB each\n(GPT-2: 10.7 MB)", size=9, ha="left")
    return fig


if __name__ == "__main__":
    main()
