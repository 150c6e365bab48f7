"""What the memory estimators of chapter 4's bonus folders share: options, and how they print."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from llms_from_scratch.cache_memory import (
    DTYPE_BYTES,
    CacheShape,
    check_positive,
    published_shape,
    published_table,
)

CONTEXTS = [2**k for k in range(8, 18)]  # 256 to 131,072
# Told apart by those who see few colours, too (Okabe and Ito's palette)
PLOT_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def estimator_parser(description: str, needs_context: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of all estimators of a cache."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if needs_context:
        parser.add_argument(
            "--context_length", type=int, default=1024, help="tokens in the cache (default: 1024)"
        )
    parser.add_argument("--emb_dim", type=int, help="width of the model")
    parser.add_argument("--n_heads", type=int, help="query heads of a layer")
    parser.add_argument("--n_layers", type=int, help="layers")
    parser.add_argument("--batch_size", type=int, default=1, help="texts (default: 1)")
    parser.add_argument(
        "--dtype", choices=DTYPE_BYTES, default="fp16", help="of the cache (default: fp16)"
    )
    parser.add_argument("--model", help="a published model instead of sizes; 'list' shows all")
    return parser


def add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n_kv_groups", type=int, help="heads of keys and values, as in the models' configurations"
    )
    parser.add_argument(
        "--group_size", type=int, help="instead: how many query heads share one of them"
    )


def groups_of(args: argparse.Namespace) -> int:
    """The number of heads of keys and values that the options say."""
    if (args.n_kv_groups is None) == (args.group_size is None):
        raise ValueError("give --n_kv_groups or --group_size, one of them")
    if args.n_kv_groups is not None:
        return args.n_kv_groups
    check_positive(group_size=args.group_size)
    if args.n_heads % args.group_size:
        raise ValueError(f"--group_size {args.group_size} does not divide --n_heads {args.n_heads}")
    return args.n_heads // args.group_size


def needed(args: argparse.Namespace, *names: str) -> None:
    """Raise ``ValueError`` for options that are not there, or not positive."""
    missing = [f"--{name}" for name in names if getattr(args, name) is None]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)} (or --model NAME)")
    for name in (*names, "batch_size", "context_length"):
        if getattr(args, name, None) is not None:
            check_positive(**{f"--{name}": getattr(args, name)})


def show_published(args: argparse.Namespace) -> bool:
    """Print what ``--model`` asks for; False if it is not used."""
    if args.model is None:
        return False
    if args.model == "list":
        print_table(published_table(args.dtype))
        print(f"\nThe cache of one text in {args.dtype}; what is in a memory is in fp32.")
        return True
    shape = published_shape(args.model)
    total = shape.total_bytes(args.context_length, args.dtype, args.batch_size)
    print_pairs("Config", describe(shape, args))
    multi_head = CacheShape(shape.n_layers, shape.n_heads, shape.n_heads, shape.head_dim)
    as_mha = multi_head.total_bytes(args.context_length, args.dtype, args.batch_size)
    pairs = [("This model", gb(total)), ("MHA in all layers", gb(as_mha))]
    print_pairs("KV-cache totals across all layers", [*pairs, *compare("MHA", as_mha, "it", total)])
    return True


def describe(shape: CacheShape, args: argparse.Namespace) -> list[tuple[str, object]]:
    pairs = [("model", args.model), ("context_length", args.context_length)]
    pairs += [("batch_size", args.batch_size), ("dtype", args.dtype)]
    used = {name: value for name, value in vars(shape).items() if value}
    if not shape.delta_layers:
        used.pop("conv_size")
    return pairs + list(used.items())


def gb(n: float) -> str:
    """GB, and MB or kB for what is small.

    >>> gb(4_294_967_296), gb(2_500_000), gb(12_800)
    ('4.29 GB', '2.50 MB', '12.80 kB')
    """
    if n >= 1e8:
        return f"{n / 1e9:,.2f} GB"
    return f"{n / 1e6:,.2f} MB" if n >= 1e5 else f"{n / 1e3:,.2f} kB"


def compare(name: str, more: float, other: str, less: float) -> list[tuple[str, str]]:
    """A ratio and what is saved.

    >>> compare("MHA", 4, "GQA", 1)
    [('Ratio (MHA / GQA)', '4.00x'), ('Savings (GQA vs MHA)', '75.00%')]
    """
    return [
        (f"Ratio ({name} / {other})", f"{more / less:,.2f}x"),
        (f"Savings ({other} vs {name})", f"{(1 - less / more):.2%}"),
    ]


def print_pairs(title: str, pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    print(f"==== {title} ====")
    for name, value in pairs:
        print(f"{name:<{width}} : {value}")
    print()


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table whose columns are as wide as what is in them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print("\n".join(lines))


def plot_lines(
    x: Sequence[float],
    lines: dict[str, Sequence[float]],
    labels: tuple[str, str, str],
    path: str | Path,
    logarithmic: bool = True,
) -> None:
    """Curves over ``x`` into a file; ``labels`` are the title, and those of x and y."""
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    import matplotlib.pyplot as plt

    path = Path(path)
    known = plt.gcf().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"--output {path}: a picture ends in .pdf, .svg or .png")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for number, (name, values) in enumerate(lines.items()):
        color = PLOT_COLORS[number % len(PLOT_COLORS)]
        style = styles[number % len(styles)]
        axes.plot(x, values, label=name, linewidth=2, color=color, linestyle=style)
    axes.set_xscale("log", base=2)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_title(labels[0])
    axes.set_xlabel(labels[1])
    axes.set_ylabel(labels[2])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close("all")
    print(f"Saved plot to: {path}")
