"""Configuration dictionaries that say what they mean, or are refused."""

import difflib
from collections.abc import Iterable, Mapping


def closest(key: str, known: Iterable[str]) -> str:
    """A hint for a mistyped key.

    >>> closest("n_head", ["n_heads", "n_layers"])
    "did you mean 'n_heads'?"
    """
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def check_config(
    cfg: Mapping,
    name: str,
    required: Iterable[str],
    optional: Iterable[str] = (),
    only: Mapping | None = None,
) -> None:
    """Raise ``ValueError`` for a key that is missing or unknown, or has no effect as it is.

    ``only`` has keys that other architectures know, with the one value that agrees with what this
    one computes: a configuration may contain them, if it does not ask for something else.
    """
    required, optional, only = list(required), list(optional), dict(only or {})
    for key, value in cfg.items():
        if key in only:
            if value not in (only[key], None):
                raise ValueError(f"{name} computes {key}={only[key]!r} only, got {value!r}")
        elif key not in required and key not in optional:
            raise ValueError(
                f"unknown key {key!r} in the configuration of {name}; "
                f"{closest(key, [*required, *optional])}"
            )
    missing = [key for key in required if key not in cfg]
    if missing:
        raise ValueError(f"missing in the configuration of {name}: {', '.join(missing)}")
    for key in required:
        value = cfg[key]
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if is_count and value < 1:
            raise ValueError(f"{key} of {name} must be at least 1, got {value}")


def check_heads(cfg: Mapping, name: str, groups_key: str = "n_kv_groups") -> None:
    """Raise ``ValueError`` if the query heads cannot be shared out, or the width not be split."""
    heads, groups = cfg["n_heads"], cfg[groups_key]
    if heads % groups:
        raise ValueError(f"{name}: n_heads={heads} is no multiple of {groups_key}={groups}")
    if cfg.get("head_dim") is None and cfg["emb_dim"] % heads:
        raise ValueError(
            f"{name}: n_heads={heads} does not divide emb_dim={cfg['emb_dim']}; give a head_dim"
        )


def with_one_name_for_tying(cfg: Mapping) -> dict:
    """A copy that has ``tie_embeddings`` where only ``tie_word_embeddings`` is given.

    >>> with_one_name_for_tying({"tie_word_embeddings": True})
    {'tie_word_embeddings': True, 'tie_embeddings': True}
    """
    copy = dict(cfg)
    if "tie_word_embeddings" in copy:
        copy.setdefault("tie_embeddings", copy["tie_word_embeddings"])
    return copy


LAYER_TYPES = ("full_attention", "sliding_attention")


def check_layer_types(cfg: Mapping, name: str) -> None:
    """Raise ``ValueError`` unless ``layer_types`` has one known type per layer, and a window."""
    types, window = cfg["layer_types"], cfg["sliding_window"]
    if len(types) != cfg["n_layers"]:
        raise ValueError(
            f"{name}: layer_types has {len(types)} entries for n_layers={cfg['n_layers']}"
        )
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise ValueError(f"{name}: unknown layer type {unknown[0]!r}; known: {LAYER_TYPES}")
    if "sliding_attention" in types and (not isinstance(window, int) or window < 1):
        raise ValueError(f"{name}: sliding_window must be at least 1, got {window!r}")
