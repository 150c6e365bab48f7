"""What came out of many runs: a table with intervals, and figures. Drawn from ``results.csv``."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from llms_from_scratch.classification.explain import calibration, calibration_error
from llms_from_scratch.data.files import atomic_write

RESULTS_BEGIN = "<!-- results -->"
RESULTS_END = "<!-- end of results -->"
# Student's t for 95 %, two-sided, by degrees of freedom; the normal distribution beyond
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")


def interval_of_seeds(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over seeds; NaN for one value.

    >>> round(interval_of_seeds([0.95, 0.96, 0.97]), 4)
    0.0248
    """
    if len(values) < 2:
        return math.nan
    return STUDENT.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of right answers, for ``count`` texts (Wilson, 1927).

    It says how far another test set of that size may be off, whatever the seed.

    >>> [round(bound, 3) for bound in wilson_interval(0.95, 300)]
    [0.919, 0.969]
    """
    z2 = 1.96**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) * 1.96 / (1 + z2 / count)
    return center - spread, center + spread


def grouped(rows: Sequence[dict]) -> list[list[dict]]:
    """The runs that differ in their seed only, by row of the table, then in their order."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["row"], row["model"], row["options"], row["data"]), []).append(row)
    return sorted(groups.values(), key=lambda group: int(group[0]["row"] or 1000))


def table_of(rows: Sequence[dict]) -> str:
    """Mean accuracies in Markdown, with the interval over the seeds where there are several."""
    head = "| row | model | options | train % | validation % | test % | seeds | seconds |\n"
    lines = [head + "|---|---|---|---|---|---|---|---|"]
    common = common_options(rows)
    for group in grouped(rows):
        first = group[0]
        own = " ".join(option for option in options_in(first) if option not in common)
        cells = [first["row"] or "–", first["model"], f"`{own}`" if own else ""]
        for name in ("train", "validation", "test"):
            values = [row[name] for row in group]
            spread = interval_of_seeds(values)
            around = "" if math.isnan(spread) or name != "test" else f" ± {100 * spread:.1f}"
            cells.append(f"{100 * mean(values):.2f}{around}")
        cells += [str(len(group)), f"{mean(cost_of(row) for row in group):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if common:
        lines += ["", f"All trained runs have `{' '.join(common)}` as well."]
    return "\n".join(lines)


def cost_of(row: dict) -> float:
    """Seconds of a run, as if it had computed the frozen layers itself."""
    return row["seconds"] + row["frozen_seconds"]


def options_in(row: dict) -> list[str]:
    """The options of a run, each with its value.

    >>> options_in({"options": "--no_padding --batch_size 1"})
    ['--no_padding', '--batch_size 1']
    """
    return [f"--{option.strip()}" for option in row["options"].split("--") if option.strip()]


def common_options(rows: Sequence[dict]) -> list[str]:
    """The options that all trained runs have: no need to repeat them for each."""
    trained = [options_in(row) for row in rows if row["trainable_parameters"]]
    return [option for option in trained[0] if all(option in o for o in trained)] if trained else []


SHORT = {"trainable_layers ": "", "trainable_token_pos ": "token ", "learning_rate ": "lr "}


def label_of(row: dict, common: Sequence[str] = ()) -> str:
    """A run's number in the table, its model, and what is special about it."""
    own = ", ".join(option.removeprefix("--") for option in options_in(row) if option not in common)
    for long, short in SHORT.items():
        own = own.replace(long, short)
    model = row["model"].split(" (")[0].split(",")[0].removesuffix("-instruct")
    title = f"{row['row']}: " if row["row"] else ""
    return f"{title}{model}{' ' if own else ''}{own}"[:72]


def write_report(results) -> None:
    """Draw all figures into ``figures`` beside the results; put the table into the README there.

    The table goes between the two marks ``<!-- results -->`` and ``<!-- end of results -->``, if
    there is a README with them, and is printed. Raises ``ValueError`` if there are no results.
    """
    import matplotlib

    if not results.rows:
        raise ValueError(f"{results.path} has no runs: do some first")
    matplotlib.use("agg")
    figures = results.folder / "figures"
    figures.mkdir(exist_ok=True)
    plot_accuracies(results.rows, figures / "accuracies.svg")
    plot_cost(results.rows, figures / "cost.svg")
    plot_curves(results, figures / "curves.svg")
    plot_calibration(results, figures / "calibration.svg")
    text = table_of(results.rows)
    print(text)
    mistakes = table_of_mistakes(results)
    replace_between(results.folder / "README.md", RESULTS_BEGIN, RESULTS_END, text)
    replace_between(
        results.folder / "README.md", "<!-- mistakes -->", "<!-- end of mistakes -->", mistakes
    )


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a file; nothing happens without them."""
    if not path.is_file():
        return
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        return
    before, _, rest = content.partition(begin)
    after = rest.partition(end)[2]
    with atomic_write(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _axes(width: float, height: float):
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "classification"  # the same figure is the same file
    fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    return fig, ax


def _save(fig, path: Path) -> None:
    import matplotlib.pyplot as plt

    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def plot_accuracies(rows: Sequence[dict], path: Path) -> None:
    """Each group's mean with the test set's own uncertainty, and its seeds as dots."""
    groups, common = grouped(rows)[::-1], common_options(rows)
    fig, ax = _axes(8, 1.2 + 0.32 * len(groups))
    for height, group in enumerate(groups):
        values = [100 * row["test"] for row in group]
        low, high = wilson_interval(mean(values) / 100, group[0]["test_texts"])
        ax.plot([100 * low, 100 * high], [height] * 2, color="#aaaaaa", linewidth=5)
        ax.plot(values, [height] * len(values), "o", color=COLORS[0], markersize=4, alpha=0.8)
        ax.plot(mean(values), height, "|", color="black", markersize=12, markeredgewidth=2)
    ax.set_yticks(range(len(groups)), [label_of(g[0], common) for g in groups], fontsize=8)
    ax.set_xlabel("test accuracy, % (dots: seeds; band: 95 % interval)")
    _save(fig, path)


def plot_cost(rows: Sequence[dict], path: Path) -> None:
    """Accuracy against seconds: what one more point costs."""
    fig, ax = _axes(7, 4.2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    common = common_options(rows)
    for number, group in enumerate(grouped(rows)):
        color = COLORS[models.index(group[0]["model"]) % len(COLORS)]
        seconds = max(0.05, mean(cost_of(row) for row in group))
        value = 100 * mean(row["test"] for row in group)
        ax.plot(seconds, value, "o", color=color)
        name = group[0]["row"] or label_of(group[0], common)
        at_right = seconds > 10  # where there is no room to the right of the point
        ax.annotate(
            name,
            (seconds, value),
            xytext=(-6 if at_right else 6, 3 - 9 * (number % 2)),
            textcoords="offset points",
            ha="right" if at_right else "left",
            fontsize=7,
        )
    for model, color in zip(models, COLORS * 5, strict=False):
        ax.plot([], [], "o", color=color, label=model.split(" (")[0])
    ax.margins(y=0.15)
    ax.set(xscale="log", xlabel="seconds for training and measuring", ylabel="test accuracy, %")
    ax.legend(fontsize=8)
    _save(fig, path)


def best_groups(rows: Sequence[dict], count: int = 6) -> list[dict]:
    """The first run of the groups that have curves, the best of each model before others."""
    groups = [group for group in grouped(rows) if group[0]["trainable_parameters"]]
    groups.sort(key=lambda group: -mean(row["test"] for row in group))
    first_of_model = {group[0]["model"]: group for group in reversed(groups)}
    chosen = list(first_of_model.values())
    chosen += [group for group in groups if not any(group is other for other in chosen)]
    return [group[0] for group in chosen[:count]]


def plot_curves(results, path: Path) -> None:
    """Training and validation loss of some runs, and validation accuracy by epoch."""
    import matplotlib.pyplot as plt

    common = common_options(results.rows)
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for row, color in zip(best_groups(results.rows), COLORS, strict=False):
        details = results.details(row)
        left.plot(
            details["steps"], details["train_losses"], color=color, label=label_of(row, common)
        )
        left.plot(details["steps"], details["val_losses"], color=color, linestyle=":")
        accuracies = [100 * value for value in details["epoch_val_accuracies"]]
        right.plot(range(1, len(accuracies) + 1), accuracies, "o-", color=color)
    left.set(xlabel="updates", ylabel="loss (solid: training, dotted: validation)", yscale="log")
    right.set(xlabel="epoch", ylabel="validation accuracy, %")
    right.xaxis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    _save(fig, path)


def plot_calibration(results, path: Path) -> None:
    """Whether answers given with 90 % are right in 90 %; runs that differ in the seed together."""
    fig, ax = _axes(5.5, 5)
    ax.plot([50, 100], [50, 100], color="#999999", linestyle="--", linewidth=1)
    wanted, common = best_groups(results.rows), common_options(results.rows)
    for first, color in zip(wanted, COLORS, strict=False):
        group = next(g for g in grouped(results.rows) if any(row is first for row in g))
        confidences, correct = [], []
        for row in group:
            details = results.details(row)
            pairs = zip(details["test_probabilities"], details["test_labels"], strict=True)
            for probabilities, label in pairs:
                confidences.append(max(probabilities))
                correct.append(probabilities.index(max(probabilities)) == label)
        bins = calibration(confidences, correct, num_bins=8)
        name = f"{label_of(first, common)[:44]}, error {100 * calibration_error(bins):.1f}"
        x, y = [100 * b[0] for b in bins], [100 * b[1] for b in bins]
        sizes = [10 + 60 * b[2] / len(correct) for b in bins]
        ax.scatter(x, y, sizes, color=color, alpha=0.7, label=name)
        for xi, yi, (_, _, count) in zip(x, y, bins, strict=True):
            offset = (4, 3) if color == COLORS[0] else (4, -9)
            ax.annotate(
                str(count),
                (xi, yi),
                xytext=offset,
                textcoords="offset points",
                fontsize=7,
                color=color,
            )
    ax.set(xlabel="confidence of the answer, %", ylabel="right answers, % (numbers: texts)")
    ax.legend(fontsize=7, loc="upper left")
    _save(fig, path)


def table_of_mistakes(results, limit: int = 8) -> str:
    """The surest wrong answers of the best run that can say which tokens it looked at."""
    lines = ["| text | label | answer | tokens that spoke for it |", "|---|---|---|---|"]
    for row in sorted(results.rows, key=lambda row: -row["test"]):
        if not row["trainable_parameters"]:
            continue
        mistakes = [m for m in results.details(row)["mistakes"] if "tokens" in m]
        if not mistakes:
            continue
        for mistake in mistakes[:limit]:
            text = " ".join(mistake["text"].split()).replace("|", "\\|").replace("<", "&lt;")
            text = text if len(text) <= 110 else f"{text[:107]}..."
            tokens = ", ".join(
                "`" + repr(t)[1:-1].replace("|", "\\|") + "`" for t in mistake["tokens"]
            )
            lines.append(
                f"| {text} | {mistake['label']} | {1 - mistake['label']} with "
                f"{100 * mistake['probability']:.0f} % | {tokens} |"
            )
        return "\n".join(
            [f"Of {label_of(row, common_options(results.rows))}, seed {row['seed']}:", "", *lines]
        )
    return "No run of a GPT has made a mistake."
