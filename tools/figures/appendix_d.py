"""Diagram of appendix D: ``python tools/figures/appendix_d.py`` writes it as an SVG file."""

from drawing import BLUE, GREY, ORANGE, arrow, box, canvas, label, save_all

FOLDER = "appendix-D/01_main-chapter-code/figures"


def main() -> None:
    save_all(FOLDER, update, schedule)


def update():
    """The update of chapter 5 in blue, and what this appendix adds to it in orange."""
    fig, ax = canvas(8.8, 1.7)
    steps = (
        ("set the\nlearning rate", ORANGE, "D.1, D.2"),
        ("forget old\ngradients", BLUE, ""),
        ("compute\nthe loss", BLUE, ""),
        ("compute the\ngradients", BLUE, ""),
        ("limit their\nnorm", ORANGE, "D.3"),
        ("move the\nweights", BLUE, ""),
    )
    width, gap = 1.22, 0.24
    for number, (text, color, section) in enumerate(steps):
        x = 0.15 + number * (width + gap)
        box(ax, x, 0.6, width, 0.7, text, color, size=9)
        label(ax, x + width / 2, 1.48, section, size=9, weight="bold")
        if number:
            arrow(ax, (x - gap + 0.02, 0.95), (x - 0.02, 0.95))
    end = 0.15 + 5 * (width + gap) + width / 2
    ax.plot([end, end, 0.76, 0.76], [0.58, 0.3, 0.3, 0.4], color="#22303c", linewidth=1.2)
    arrow(ax, (0.76, 0.4), (0.76, 0.58))
    label(ax, 4.4, 0.15, "next batch", size=8.5)
    return fig


def schedule():
    """Warmup and cosine decay as two phases of a run."""
    import math

    fig, ax = canvas(7.2, 2.3)
    ax.add_patch(_area(0.6, 1.9, GREY))
    ax.add_patch(_area(1.9, 6.6, BLUE))
    xs = [1.9 + 4.7 * i / 60 for i in range(61)]
    ys = [0.5 + 1.3 * 0.5 * (1 + math.cos(math.pi * i / 60)) for i in range(61)]
    ax.plot([0.6, 1.9, *xs], [0.55, 1.8, *ys], color="#22303c", linewidth=2)
    label(ax, 1.25, 2.1, "warmup", weight="bold")
    label(ax, 4.2, 2.1, "cosine decay", weight="bold")
    for y, name in ((0.55, "initial_lr"), (1.8, "peak_lr")):
        label(ax, 0.55, y, name, size=8, ha="right")
    label(ax, 6.65, 0.5, "min_lr", size=8, ha="left")
    label(ax, 1.25, 0.22, "warmup_steps", size=8)
    label(ax, 4.2, 0.22, "total_steps - warmup_steps", size=8)
    return fig


def _area(left, right, color):
    from drawing import plt

    return plt.Rectangle((left, 0.4), right - left, 1.55, facecolor=color, edgecolor="none")


if __name__ == "__main__":
    main()
