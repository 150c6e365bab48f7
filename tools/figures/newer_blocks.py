"""What is new in the models after Olmo 3: ``python tools/figures/newer_blocks.py`` writes it."""

from drawing import BLUE, GREEN, INK, ORANGE, PURPLE, arrow, box, canvas, label, save

FOLDER = "ch05/what-changed/figures"


def main() -> None:
    save(parallel_block(), f"{FOLDER}/parallel-block.svg")
    save(memory_and_attention(), f"{FOLDER}/memory-and-attention.svg")
    save(shared_keys(), f"{FOLDER}/shared-keys.svg")


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
