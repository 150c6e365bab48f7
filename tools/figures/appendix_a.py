"""Diagrams of appendix A: ``python tools/figures/appendix_a.py`` writes them as SVG files."""

from math import cos, exp, pi, sin

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
    plt,
    save_all,
)

FOLDER = "appendix-A/01_main-chapter-code/figures"
BACKWARD = "#b0341a"  # gradients flow from right to left


def main() -> None:
    save_all(
        FOLDER,
        tensor_dimensions,
        computation_graph,
        autograd_graph,
        network,
        data_loader,
        training_loop,
        data_parallel,
        shares_of_ranks,
    )


def tensor_dimensions():
    """A number, a row, a table, and two tables one behind the other."""
    fig, ax = canvas(9.0, 2.6)
    size = {"width": 0.45, "height": 0.4}
    cells(ax, 0.75, 1.75, [[1]], [[BLUE]], **size)
    cells(ax, 2.15, 1.75, [[1, 2, 3]], [[BLUE] * 3], **size)
    cells(ax, 4.6, 1.95, [[1, 2], [3, 4]], [[BLUE] * 2] * 2, **size)
    cells(ax, 7.25, 2.2, [[5, 6], ["", 8]], [[ORANGE] * 2] * 2, **size)
    cells(ax, 6.95, 1.9, [[1, 2], [3, 4]], [[BLUE] * 2] * 2, **size)
    names = {
        0.97: "0-D: scalar\nshape ()",
        2.83: "1-D: vector\nshape (3,)",
        5.05: "2-D: matrix\nshape (2, 2)",
        7.55: "3-D tensor\nshape (2, 2, 2)",
    }
    for x, name in names.items():
        label(ax, x, 0.5, name)
    return fig


def logistic_values():
    """The forward values of the small example: u = x1 w1, z = u + b, a = sigmoid(z)."""
    x1, w1, b, y = 1.1, 2.2, 0.0, 1.0
    u = x1 * w1
    z = u + b
    a = 1 / (1 + exp(-z))
    return x1, w1, b, y, u, z, a


def draw_forward(ax):
    """Boxes and arrows of the logistic regression unit, which two diagrams share."""
    _, _, _, _, u, z, a = logistic_values()
    box(ax, 0.3, 2.9, 1.1, 0.5, "$x_1$ = 1.1", GREY)
    box(ax, 0.3, 1.7, 1.1, 0.5, "$w_1$ = 2.2", GREEN)
    box(ax, 3.9, 0.5, 1.1, 0.5, "$b$ = 0.0", GREEN)
    box(ax, 8.3, 3.5, 1.1, 0.5, "$y$ = 1.0", GREY)
    box(ax, 2.2, 2.25, 1.5, 0.6, f"$u = w_1 x_1$\n{u:.2f}", BLUE, size=9)
    box(ax, 4.2, 2.25, 1.5, 0.6, f"$z = u + b$\n{z:.2f}", BLUE, size=9)
    box(ax, 6.2, 2.25, 1.5, 0.6, f"$a = \\sigma(z)$\n{a:.4f}", BLUE, size=9)
    box(ax, 8.1, 2.25, 1.5, 0.6, "loss $L(a, y)$\n0.0852", ORANGE, size=9)
    arrow(ax, (1.4, 3.05), (2.18, 2.72))
    arrow(ax, (1.4, 2.05), (2.18, 2.38))
    arrow(ax, (4.6, 1.0), (4.75, 2.22))
    arrow(ax, (3.7, 2.55), (4.18, 2.55))
    arrow(ax, (5.7, 2.55), (6.18, 2.55))
    arrow(ax, (7.7, 2.55), (8.08, 2.55))
    arrow(ax, (8.85, 3.5), (8.85, 2.88))


def computation_graph():
    """The forward pass of a logistic regression unit with one input."""
    fig, ax = canvas(9.9, 4.2)
    draw_forward(ax)
    legend = {0.3: ("given", GREY), 1.5: ("parameter", GREEN), 3.05: ("computed", BLUE)}
    for x, (text, color) in legend.items():
        box(ax, x + 5.5, 0.62, 0.3, 0.26, "", color)
        label(ax, x + 5.9, 0.75, text, ha="left", size=9)
    return fig


def autograd_graph():
    """The same graph with the way back: local derivatives, multiplied along each path."""
    fig, ax = canvas(9.9, 4.6)
    draw_forward(ax)
    x1, _, _, y, _, _, a = logistic_values()
    da = -y / a + (1 - y) / (1 - a)
    dz = a * (1 - a)
    total = da * dz
    back = {"color": BACKWARD, "linestyle": (0, (4, 2))}
    arrow(ax, (8.5, 2.22), (7.3, 2.22), curve=-0.35, **back)
    arrow(ax, (6.6, 2.22), (5.3, 2.22), curve=-0.35, **back)
    arrow(ax, (4.5, 2.22), (3.3, 2.22), curve=-0.35, **back)
    arrow(ax, (5.05, 2.22), (5.02, 0.75), curve=-0.35, **back)
    arrow(ax, (2.6, 2.22), (1.1, 1.68), curve=-0.3, **back)
    text = {"color": BACKWARD, "size": 9}
    minus = "\N{MINUS SIGN}"
    label(ax, 8.2, 1.78, f"$\\partial L/\\partial a$ = {da:.3f}".replace("-", minus), **text)
    label(ax, 6.25, 1.78, f"$\\partial a/\\partial z$ = {dz:.3f}", **text)
    label(ax, 3.85, 1.78, "$\\partial z/\\partial u$ = 1", **text)
    label(ax, 5.85, 1.3, "$\\partial z/\\partial b$ = 1", **text)
    label(ax, 2.1, 1.42, f"$\\partial u/\\partial w_1$ = {x1}", **text)
    box(ax, 5.95, 0.08, 3.65, 0.95, "", WHITE)
    label(
        ax,
        6.05,
        0.78,
        f"$\\partial L/\\partial b$ = {da:.3f} · {dz:.3f} · 1 = {total:.4f}".replace("-", minus),
        ha="left",
        **text,
    )
    label(
        ax,
        6.05,
        0.33,
        f"$\\partial L/\\partial w_1$ = {da:.3f} · {dz:.3f} · 1 · {x1} = {total * x1:.4f}".replace(
            "-", minus
        ),
        ha="left",
        **text,
    )
    label(ax, 0.3, 4.25, "forward: values", ha="left", weight="bold")
    label(ax, 2.3, 4.25, "backward: derivatives", ha="left", weight="bold", color=BACKWARD)
    return fig


def network():
    """The toy network: every unit is connected with every unit of the layer before."""
    fig, ax = canvas(8.6, 4.4)
    layers = [
        (1.2, ["$x_1$", "$x_2$", "…", "$x_{50}$"], GREY, "50 inputs"),
        (3.2, ["", "", "…", ""], BLUE, "first hidden layer\n30 units, ReLU"),
        (5.4, ["", "", "…", ""], BLUE, "second hidden layer\n20 units, ReLU"),
        (7.4, ["0", "1", "2"], ORANGE, "3 outputs\n(logits)"),
    ]
    places = []
    for x, texts, _, _ in layers:
        middle = 2.45
        step = 0.8
        top = middle + step * (len(texts) - 1) / 2
        places.append([(x, top - step * i) for i in range(len(texts))])
    for left, right in zip(places, places[1:], strict=False):
        for start in left:
            for end in right:
                ax.plot(*zip(start, end, strict=True), color="#9aa3ab", linewidth=0.7, zorder=1)
    for (x, texts, color, name), row in zip(layers, places, strict=True):
        for text, (left, y) in zip(texts, row, strict=True):
            shade = WHITE if text == "…" else color
            ax.add_patch(plt.Circle((left, y), 0.27, facecolor=shade, edgecolor=INK, zorder=2))
            ax.text(left, y, text, ha="center", va="center", fontsize=10, zorder=3)
        label(ax, x, 0.55, name, size=9)
    for x, text in (
        (2.2, "50 · 30 + 30\n= 1,530"),
        (4.3, "30 · 20 + 20\n= 620"),
        (6.4, "20 · 3 + 3\n= 63"),
    ):
        label(ax, x, 4.1, text, size=9)
    label(ax, 0.15, 4.1, "parameters:", ha="left", size=9, weight="bold")
    return fig


def data_loader():
    """Dataset, sampler, loader: five points become two batches, one point is left over."""
    fig, ax = canvas(9.4, 3.4)
    points = ["(-1.2, 3.1)", "(-0.9, 2.9)", "(-0.5, 2.6)", "(2.3, -1.1)", "(2.7, -1.5)"]
    points = [point.replace("-", "\N{MINUS SIGN}") for point in points]
    labels = [0, 0, 0, 1, 1]
    colors = [BLUE, BLUE, BLUE, ORANGE, ORANGE]
    rows = [[i, point, y] for i, (point, y) in enumerate(zip(points, labels, strict=True))]
    for column, (left, width, name) in enumerate(
        ((0.2, 0.4, ""), (0.6, 1.25, "features"), (1.85, 0.6, "label"))
    ):
        column_colors = [[GREY if column == 0 else color] for color in colors]
        cells(ax, left, 2.6, [[r[column]] for r in rows], column_colors, width=width, height=0.36)
        label(ax, left + width / 2, 2.75, name, size=9)
    label(ax, 1.3, 3.15, "Dataset", weight="bold")
    label(ax, 1.3, 0.5, "dataset[i] gives one\nexample, len() their number", size=9)

    order = [2, 0, 4, 1, 3]
    label(ax, 4.1, 3.15, "Sampler", weight="bold")
    cells(ax, 3.9, 2.6, [[i] for i in order], [[GREY]] * 5, width=0.4, height=0.36)
    label(ax, 4.1, 0.5, "a new random order\nin each epoch", size=9)
    arrow(ax, (2.55, 1.7), (3.8, 1.7))

    label(ax, 7.3, 3.15, "DataLoader", weight="bold")
    for number, batch in enumerate((order[:2], order[2:4], order[4:])):
        left = 5.3 + 1.35 * number
        full = len(batch) == 2
        block = [[points[i]] for i in batch]
        shades = [[colors[i] if full else RED] for i in batch]
        cells(ax, left, 2.25, block, shades, width=1.2, height=0.36, size=8.5)
        name = f"batch {number}" if full else "left out"
        label(ax, left + 0.6, 2.45, name, size=9)
    label(ax, 6.55, 1.3, "features: (2, 2)\nlabels: (2,)", size=9)
    label(
        ax,
        7.3,
        0.5,
        "puts examples together; drop_last=True\nleaves out a batch that is not full",
        size=9,
    )
    arrow(ax, (4.4, 1.7), (5.2, 1.7))
    return fig


def training_loop():
    """Five steps per batch in a circle."""
    fig, ax = canvas(9.4, 4.6)
    steps = [
        ("1  take a batch", "for features, labels in train_loader", GREY),
        ("2  forward pass", "logits = model(features)", BLUE),
        ("3  loss", "loss = F.cross_entropy(logits, labels)", ORANGE),
        ("4  backward pass", "optimizer.zero_grad(); loss.backward()", RED),
        ("5  update", "optimizer.step()", GREEN),
    ]
    center_x, center_y, width, height = 4.7, 2.25, 3.0, 0.72
    places = []
    for i in range(5):
        angle = pi / 2 - 2 * pi * i / 5
        places.append((center_x + 2.95 * cos(angle), center_y + 1.8 * sin(angle)))
    for (x, y), (name, code, color) in zip(places, steps, strict=True):
        box(ax, x - width / 2, y - height / 2, width, height, "", color)
        label(ax, x, y + 0.15, name, weight="bold", size=9.5)
        label(ax, x, y - 0.16, code, size=8, family="DejaVu Sans Mono")
    arrow(ax, (6.25, 3.95), (7.2, 3.25), curve=-0.2)
    arrow(ax, (7.4, 2.4), (6.9, 1.2), curve=-0.15)
    arrow(ax, (4.95, 0.8), (4.48, 0.8))
    arrow(ax, (2.5, 1.2), (2.0, 2.4), curve=-0.15)
    arrow(ax, (2.2, 3.25), (3.15, 3.95), curve=-0.2)
    label(ax, center_x, 2.45, "once per batch;", size=9, style="italic")
    label(ax, center_x, 2.15, "once through all batches = 1 epoch", size=9, style="italic")
    return fig


def data_parallel():
    """Two processes: the same weights, different points, averaged gradients, the same step."""
    fig, ax = canvas(9.6, 4.3)
    columns = [
        (0.2, 1.35, "same weights", GREEN),
        (2.0, 1.35, "own batch", BLUE),
        (3.8, 1.35, "own gradient", ORANGE),
        (6.0, 1.55, "average\ngradient", RED),
        (8.0, 1.4, "same weights\nafter the step", GREEN),
    ]
    for rank, y in ((0, 2.75), (1, 0.95)):
        box(ax, 0.05, y - 0.2, 9.5, 1.3, "", WHITE)
        label(ax, 0.2, y + 0.95, f"process with rank {rank}", ha="left", size=9, weight="bold")
        for column, (x, width, text, color) in enumerate(columns):
            symbol = {1: f"\n$B_{rank}$", 2: f"\n$g_{rank}$", 0: "\n$W$"}.get(column, "")
            box(ax, x, y, width, 0.72, text + symbol, color, size=9)
        for start, end in ((1.55, 2.0), (3.35, 3.8), (7.55, 8.0)):
            arrow(ax, (start, y + 0.36), (end - 0.02, y + 0.36))
        arrow(ax, (5.15, y + 0.36), (5.98, y + 0.36))
    arrow(ax, (5.55, 3.05), (5.55, 1.4), style="<|-|>")
    label(ax, 5.5, 0.4, "all-reduce: the processes exchange their gradients;", size=9)
    label(ax, 5.5, 0.13, "each gets $g = (g_0 + g_1) / 2$", size=9)
    label(ax, 1.65, 2.13, "forward and backward pass: no exchange", size=9, style="italic")
    return fig


def shares_of_ranks():
    """A shuffled order, dealt out to two ranks, two points each per step."""
    fig, ax = canvas(8.6, 2.75)
    order = [13, 4, 18, 7, 0, 11, 2, 16, 9, 5, 14, 1]
    width, left = 0.5, 2.2
    dealt = [[BLUE if i % 2 == 0 else ORANGE for i in range(12)]]
    cells(ax, left, 2.45, [order], dealt, width=width, height=0.38)
    label(ax, left - 0.15, 2.26, "shuffled indices", ha="right", size=9)
    label(ax, left + 12 * width + 0.2, 2.26, "…")
    for rank, (y, color) in enumerate(((1.45, BLUE), (0.8, ORANGE))):
        label(ax, left - 0.15, y - 0.19, f"rank {rank} gets", ha="right", size=9)
        for step in range(3):
            own = order[rank::2][2 * step : 2 * step + 2]
            cells(
                ax, left + 4 * step * width + 0.5, y, [own], [[color] * 2], width=width, height=0.38
            )
        label(ax, left + 12 * width + 0.2, y - 0.19, "…")
    for step in range(3):
        start = left + 4 * step * width
        if step:
            ax.plot([start, start], [0.3, 2.55], color=INK, linewidth=0.8, linestyle=":")
        label(ax, start + 2 * width, 0.12, f"step {step}", size=9)
    return fig


if __name__ == "__main__":
    main()
