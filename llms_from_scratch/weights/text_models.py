"""The text model in a file that holds models for images and sound beside it."""

from collections.abc import Collection

from llms_from_scratch.weights.sources import TensorSource

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")


def text_model_of(source: TensorSource, unread: Collection[str] = ()) -> TensorSource:
    """The tensors of the text model alone, named as if there were no other: ``model.`` and so on.

    ``unread`` are beginnings of such names that no layer reads; they are left out, too.

    >>> shapes = {"model.language_model.norm.weight": (8,), "model.visual.norm.weight": (8,)}
    >>> list(text_model_of(TensorSource("file", shapes, print)).shapes)
    ['model.norm.weight']
    """
    prefix = _prefix_in(source)
    names = {name: _name_alone(name, prefix) for name in source.shapes}
    kept = {n: new for n, new in names.items() if new and not new.startswith(tuple(unread))}
    shapes = {name: source.shapes[name] for name in kept}
    return TensorSource(source.description, shapes, source.read).renamed(kept.__getitem__)


def _prefix_in(source: TensorSource) -> str:
    if "embed_tokens.weight" in source.shapes:
        return ""
    found = (p for p in PREFIXES if any(name.startswith(p) for name in source.shapes))
    return next(found, PREFIXES[-1])


def _name_alone(name: str, prefix: str) -> str:
    """A tensor's name in a file of the text model; empty for one of another model."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    if not prefix:
        return f"model.{name}"
    if prefix == "model.":
        return name
    return f"model.{name.removeprefix(prefix)}" if name.startswith(prefix) else ""
