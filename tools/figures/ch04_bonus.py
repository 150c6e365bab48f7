"""Diagrams of chapter 4's bonus folders: ``python tools/figures/ch04_bonus.py`` writes them."""

from drawing import BLUE, ORANGE, WHITE, arrow, box, canvas, cells, label, save


def main() -> None:
    save(what_is_cached(), "ch04/03_kv-cache/figures/what-is-cached.svg")


def what_is_cached():
    """One attention layer in the step that reads a fourth token, without and with a cache."""
    fig, ax = canvas(9.6, 4.5)
    tokens = ["Every", "effort", "moves", "you"]
    texts = [[f"q{i}", f"k{i}", f"v{i}"] for i in range(1, 5)]
    everything = [[ORANGE] * 3] * 4
    cached = [[WHITE, BLUE, BLUE]] * 3 + [[ORANGE] * 3]
    cached_texts = [["", *row[1:]] for row in texts[:3]] + texts[3:]
    panels = [
        (0.2, "without a cache", texts, everything, "12 vectors computed,\n9 of them once more"),
        (5.1, "with a cache", cached_texts, cached, "3 vectors computed,\n6 read from memory"),
    ]
    for left, title, names, colors, note in panels:
        label(ax, left + 2.1, 4.2, title, size=11, weight="bold")
        for i, token in enumerate(tokens):
            weight = "bold" if i == 3 else "normal"
            label(ax, left + 0.8, 3.45 - i * 0.5, token, ha="right", size=10, weight=weight)
        for j, name in enumerate(("query", "key", "value")):
            label(ax, left + 1.3 + j * 0.8, 3.85, name, size=9, style="italic")
        cells(ax, left + 0.9, 3.7, names, colors, width=0.8, height=0.5, size=10)
        label(ax, left + 2.1, 1.35, note, size=9.5)
        arrow(ax, (left + 3.35, 1.95), (left + 3.75, 1.95))
        label(ax, left + 3.8, 1.95, "next\ntoken", size=9.5, ha="left")
    for x, color, text in [
        (0.5, ORANGE, "computed in this step"),
        (3.35, BLUE, "kept from earlier steps"),
        (6.4, WHITE, "not needed: only the last query asks"),
    ]:
        box(ax, x, 0.35, 0.4, 0.3, "", color)
        label(ax, x + 0.5, 0.5, text, size=9.5, ha="left")
    return fig


if __name__ == "__main__":
    main()
