"""Write the page that lists every error message of the package, from its source.

    python tools/error_messages.py            # rewrite docs/troubleshooting.md
    python tools/error_messages.py --check    # change nothing, exit with 1 if the page differs

What stands above the first table is written by hand, and kept.
"""

import argparse
import ast
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from repository import ROOT, relative

from llms_from_scratch.data.files import atomic_write

PACKAGE = ROOT / "llms_from_scratch"
PAGE = ROOT / "docs" / "troubleshooting.md"
BEGIN = "<!-- tables: tools/error_messages.py -->"
SECTIONS = {  # title: (files and folders, what all these errors have in common)
    "Downloads and files": (
        "data/",
        "A file could not be had, or is not what it should be. Nothing wrong stays behind: a bad "
        "download is set aside and fetched again by the next call. Without a network, put the file "
        "where the message says, or name a mirror "
        "([variables](../README.md#data-and-mirrors)); `llms-from-scratch data` lists all files.",
    ),
    "Texts, tokenizers and data sets": (
        "bpe.py ch02.py ch06.py ch07.py classification/ data_generation.py dpo.py judge.py "
        "new_tokens.py preference_rules.py reflection.py tokenizer.py utils.py",
        "A text, a table or a list of entries is not as it must be. The message names file, "
        "row or entry: mend it there, or change the argument that it names.",
    ),
    "Models and their configurations": (
        "blocks/ cache_memory.py ch03.py ch04.py flops.py gemma3.py gemma4.py gpt_variants.py "
        "llama2.py llama3.py mha_variants.py olmo3.py qwen3.py qwen3_5.py tiny_aya.py",
        "Numbers that do not fit together, or an input that is longer than the model reads. Change "
        "the entry of the configuration dictionary, or the argument, that the message names; for a "
        "text that is too long, cut it or give the model a larger `context_length`.",
    ),
    "Generation and caches": (
        "generate.py kv_cache/ kv_cache_batched/",
        "A setting of the sampling is out of range, the text and its answer do not fit into the "
        "context, or a cache is used for something else than it was made for. Make a new cache for "
        "each new text.",
    ),
    "Training, checkpoints and run folders": (
        "app/run_folder.py appendix_a.py appendix_d.py appendix_e.py ch05.py chunked_loss.py "
        "saving.py schedules.py training/ training_speed.py tuning.py",
        "The training stops before anything is harmed: earlier results and checkpoints are as they "
        "were. To go on with a run, repeat its settings with `--resume`; to begin anew, choose "
        "another `--out`, or `--overwrite`. If the loss is no number, lower the learning rate.",
    ),
    "Weights in and out": (
        "weights/ app/export.py app/exporting.py app/sharded_models.py",
        "A file of weights is damaged, belongs to another model, or asks for something that this "
        "code does not compute, which is refused rather than computed wrongly. Download it again, "
        "choose the configuration that fits, or another format.",
    ),
    "Server, chat and judges": (
        "serving/ llm_client.py app/chat.py app/interface.py app/qwen3_chat.py app/serve.py",
        "A program that asks got an answer that says what was wrong with its question; the server "
        "goes on. Is it running, is the model's name right, is the key right, is the queue full?",
    ),
    "Commands": (
        "app/",
        "An option of a command is wrong. The message names it; `--help` explains all of them.",
    ),
}


@dataclass(frozen=True)
class Message:
    path: Path
    function: str
    text: str
    cause: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing, say whether it is new"
    )
    args = parser.parse_args()
    page = make_page(PAGE.read_text(encoding="utf-8"))
    if args.check:
        same = page == PAGE.read_text(encoding="utf-8")
        print("the page lists all errors" if same else f"run python {relative(Path(__file__))}")
        return not same
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return 0


def make_page(before: str) -> str:
    by_hand = before.partition(BEGIN)[0]
    found = {title: [] for title in SECTIONS}
    for message in messages():
        found[section_of(message.path)].append(message)
    tables = []
    for title, (_, common) in SECTIONS.items():
        rows = [
            f"| {code(m.text)} | {m.cause} | {code(m.function)} in {relative(m.path)} |"
            for m in sorted(found[title], key=lambda m: (relative(m.path), m.text))
        ]
        head = "| message | when | raised by |\n|---|---|---|"
        rows = list(dict.fromkeys(rows))
        tables.append("\n".join([f"## {title}", "", textwrap.fill(common, 120), "", head, *rows]))
    return by_hand + BEGIN + "\n\n" + "\n\n".join(tables) + "\n"


def section_of(path: Path) -> str:
    """The section that names the file, else the one that names its folder."""
    name = path.relative_to(PACKAGE).as_posix()
    for title, (places, _) in SECTIONS.items():
        if name in places.split():
            return title
    for title, (places, _) in SECTIONS.items():
        if f"{name.partition('/')[0]}/" in places.split():
            return title
    raise ValueError(f"{name} belongs to no section: add it to SECTIONS in {__file__}")


def messages() -> Iterator[Message]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                above = list(ancestors(node, parents))
                names = [a.name for a in above if isinstance(a, ast.FunctionDef | ast.ClassDef)]
                text = template(node.exc.args[0])
                if text:
                    function = ".".join(reversed(names)) or path.stem
                    yield Message(path, function, text, cause_of(node, above))


def ancestors(node: ast.AST, parents: dict) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def template(node: ast.expr) -> str:
    """The text of a message, with <what> stands where a value will be."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"<{shorten(ast.unparse(node.value), 40)}>"
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return f"<{shorten(ast.unparse(node), 40)}>"


def cause_of(node: ast.AST, above: list[ast.AST]) -> str:
    """The condition under which the line is reached, as it stands in the source."""
    inner = node
    for outer in above:
        if isinstance(outer, ast.If) and inner is not outer.test:
            test = code(shorten(ast.unparse(outer.test), 70))
            return f"not {test}" if inner in outer.orelse else test
        if isinstance(outer, ast.ExceptHandler):
            return f"after {code(ast.unparse(outer.type))}" if outer.type else "after an error"
        if isinstance(outer, ast.FunctionDef):
            break
        inner = outer
    return "otherwise"


def shorten(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def code(text: str) -> str:
    """Text as code in a cell of a Markdown table."""
    text = " ".join(text.split()).replace("|", "\\|")
    ticks = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


if __name__ == "__main__":
    sys.exit(main())
