"""Diagram of an embedding as a product: ``python tools/figures/ch02_bonus.py`` writes it as SVG."""

from drawing import BLUE, GREY, ORANGE, WHITE, arrow, canvas, cells, label, save

FOLDER = "ch02/03_bonus_embedding-vs-matmul/figures"


def main() -> None:
    save(onehot_product(), f"{FOLDER}/onehot-product.svg")


def onehot_product():
    """A one-hot row times a table is a row of the table."""
    fig, ax = canvas(8.6, 2.9)
    label(ax, 1.2, 2.6, "one-hot row of id 2", size=9.5, weight="bold")
    cells(ax, 0.3, 1.75, [["0", "0", "1", "0"]], [[WHITE, WHITE, ORANGE, WHITE]], width=0.45)
    label(ax, 2.5, 1.5, "×", size=14)
    label(ax, 4.1, 2.6, "table", size=9.5, weight="bold")
    rows = [[f"row {i}"] for i in range(4)]
    cells(ax, 3.0, 2.4, rows, [[GREY], [GREY], [BLUE], [GREY]], width=2.2, height=0.45)
    label(ax, 5.6, 1.5, "=", size=14)
    label(ax, 7.2, 2.6, "result", size=9.5, weight="bold")
    cells(ax, 6.1, 1.75, [["row 2"]], [[BLUE]], width=2.2, height=0.45)
    arrow(ax, (5.6, 0.25), (7.2, 1.15))
    label(ax, 3.3, 0.25, "an embedding layer takes the row directly", size=9, style="italic")
    return fig


if __name__ == "__main__":
    main()
