"""One cache for what a model's layers keep of earlier tokens: keys and values, or another state.

Shapes: b = batch size, n = new tokens, head_dim = width of a head. A *column* is a place in the
cache: the i-th token that a row was given, padding included.
"""

from collections.abc import Sequence

import torch

from llms_from_scratch.blocks.masks import attention_mask

Pair = tuple[torch.Tensor, torch.Tensor]


class KVCache:
    """Keys and values of the tokens that a model has seen, for each of its layers.

    ``KVCache.for_model(model)`` fits a model; ``KVCache(n_layers)`` is fitted when a model first
    uses it. A layer with a window keeps its last ``window - 1`` tokens only, as many as the next
    token can see besides itself. Keys are stored as they are compared: rotated, once.

    With a ``capacity``, memory for so many tokens is allocated when the first keys arrive, with
    their batch size, number of heads, dtype and device. Without, it grows with the text, twofold
    each time, up to the model's context length.

    Prompts of unequal length share a batch if the shorter ones are padded on the left:
    ``reset(padding)`` says by how many tokens per row. Padding is never attended to, and positions
    count from the first real token. ``length`` is the number of columns in use.

    Values may be narrower than keys, of width 0 even: a layer whose keys hold all that it needs
    keeps nothing twice. A layer that keeps something else, a recurrent state say, stores it whole
    with ``update(layer_idx, state)`` and finds it with ``get(layer_idx)``.
    """

    def __init__(
        self,
        n_layers: int,
        capacity: int | None = None,
        windows: Sequence[int | None] | None = None,
    ):
        if n_layers < 1 or (capacity is not None and capacity < 1):
            raise ValueError(f"a cache needs layers and room, got {n_layers=}, {capacity=}")
        if windows is not None and len(windows) != n_layers:
            raise ValueError(f"windows must have {n_layers} entries, got {len(windows)}")
        self.n_layers = n_layers
        self.capacity = capacity
        self.windows = windows
        self._grows = capacity is None
        self._storage: list[_Columns | None] = [None] * n_layers
        self.reset()

    @classmethod
    def for_model(cls, model, capacity: int | None = None) -> "KVCache":
        """A cache with the model's layers, windows, and context length or ``capacity``."""
        cache = cls(len(model.trf_blocks), capacity)
        cache.open_for(model, 0)
        return cache

    def open_for(self, model, n: int) -> None:
        """Take over what the model's layers need; ``ValueError`` if ``n`` tokens do not fit."""
        if len(model.trf_blocks) != self.n_layers:
            raise ValueError(
                f"the cache was made for {self.n_layers} layers, the model has "
                f"{len(model.trf_blocks)}"
            )
        context_length = model.cfg["context_length"]
        if self.capacity is None:
            self.capacity = context_length
        if self.windows is None:
            self.windows = model.windows
        self.check_room(n)
        if self.length + n > context_length:
            raise ValueError(
                f"the tokens in the cache and the new ones are {self.length + n}, but the model's "
                f"context_length is {context_length}: empty the cache and show the last "
                f"{context_length} tokens"
            )

    def reset(self, padding: torch.Tensor | None = None) -> None:
        """Forget all tokens but keep the memory; ``padding`` (b,) counts what rows begin with."""
        self.length = 0
        self.padding = padding if padding is not None and padding.any() else None
        self._states: dict[int, object] = {}

    @property
    def lengths(self) -> torch.Tensor | int:
        """Real tokens of each row, (b,); one number if no row is padded."""
        return self.length if self.padding is None else self.length - self.padding

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory, other states than keys and values included."""
        pairs = [columns.pair for columns in self._storage if columns is not None]
        return sum(t.nbytes for pair in pairs for t in pair) + sum(
            t.nbytes for state in self._states.values() for t in _tensors(state)
        )

    def get(self, layer_idx: int) -> Pair | object | None:
        """A layer's state, or views of its keys and values, (b, heads, tokens kept, head_dim)."""
        if layer_idx in self._states:
            return self._states[layer_idx]
        columns = self._storage[layer_idx]
        return None if columns is None else columns.last(self._kept(layer_idx))

    def get_all(self) -> list[Pair | object | None]:
        """``get`` of every layer."""
        return [self.get(layer_idx) for layer_idx in range(self.n_layers)]

    def check_room(self, n: int) -> None:
        """Raise ``ValueError`` if ``n`` more tokens do not fit."""
        if self.capacity is None:
            raise ValueError("nobody has said how large the cache is: give it a capacity")
        if self.length + n > self.capacity:
            raise ValueError(
                f"{n} more tokens do not fit: the cache holds {self.length} of at most "
                f"{self.capacity}. Empty it with reset(), or generate with a moving window"
            )

    def positions(self, n: int, device: torch.device) -> torch.Tensor:
        """Positions of the next ``n`` tokens, (n,); (b, n) if rows are padded."""
        columns = torch.arange(self.length, self.length + n, device=device)
        if self.padding is None:
            return columns
        return (columns - self.padding[:, None]).clamp(min=0)

    def mask(self, n: int, device: torch.device, window: int | None = None) -> torch.Tensor | None:
        """What the next ``n`` tokens must not attend to; see ``attention_mask``."""
        return attention_mask(n, device, self.length, window, self.padding)

    def update(
        self, layer_idx: int, keys: torch.Tensor | object, values: torch.Tensor | None = None
    ) -> Pair | object:
        """Store a layer's new keys and values (b, heads, n, head_dim); return those to attend to.

        Returned are the tokens that the layer has kept, and the new ones: (b, heads, kept + n,
        head_dim). ``length`` itself changes with ``advance``, when all layers have stored theirs.
        Without ``values``, the second argument is the layer's whole state and replaces the old one.
        Raises ``ValueError`` for too many tokens, for keys unlike those in the cache, and if
        gradients are wanted.
        """
        if any(t.requires_grad for t in _tensors(keys)):
            raise ValueError(
                "a cache keeps no gradients: call the model under torch.no_grad(), or without cache"
            )
        if values is None:
            self._states[layer_idx] = keys
            return keys
        n = keys.shape[2]
        self.check_room(n)
        columns = self._storage[layer_idx]
        if columns is None or not columns.fits((keys, values)):
            columns = self._storage[layer_idx] = self._new_columns(layer_idx, (keys, values))
        return columns.append(keys, values, self._kept(layer_idx), self._room(layer_idx))

    def advance(self, n: int) -> None:
        """Count the ``n`` tokens that every layer has stored."""
        self.length += n

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with some rows only: ``rows`` (new b,) are their numbers, in the new order."""
        for columns in self._storage:
            if columns is not None:
                columns.pair = tuple(t.index_select(0, rows) for t in columns.pair)
        self._states = {i: _select_rows(state, rows) for i, state in self._states.items()}
        if self.padding is not None:
            self.padding = self.padding[rows]

    def _window(self, layer_idx: int) -> int | None:
        return self.windows[layer_idx] if self.windows else None

    def _kept(self, layer_idx: int) -> int:
        """Columns of earlier tokens that a layer still has."""
        window = self._window(layer_idx)
        return self.length if window is None else min(self.length, window - 1)

    def _room(self, layer_idx: int) -> int:
        """The most columns that a layer ever needs room for."""
        window = self._window(layer_idx)
        # Twice a window: its columns move to the front once per window, not at every token
        return self.capacity if window is None else min(self.capacity, 2 * window)

    def _new_columns(self, layer_idx: int, new: Pair) -> "_Columns":
        keys = new[0]
        if self.length:
            old = self._storage[layer_idx]
            held = "no keys for this layer" if old is None else old.describe()
            raise ValueError(
                f"the cache holds {held}, got {len(keys)} rows of {keys.dtype} on {keys.device}: "
                "empty it first, with reset()"
            )
        room = self._room(layer_idx)
        return _Columns(new, min(room, max(256, keys.shape[2])) if self._grows else room)


class _Columns:
    """Keys and values of one layer in memory that is larger than they are, so that more fit."""

    def __init__(self, like: Pair, room: int):
        self.pair = self._allocate(like, room)
        self.end = 0  # columns in use; the last ones are the newest

    @staticmethod
    def _allocate(like: Pair, room: int) -> Pair:
        with torch.inference_mode(False):  # ordinary tensors, which any mode may write to
            return tuple(
                torch.empty((*t.shape[:2], room, t.shape[3]), dtype=t.dtype, device=t.device)
                for t in like
            )

    def fits(self, new: Pair) -> bool:
        return all(
            mine.shape[:2] == t.shape[:2]
            and mine.shape[3] == t.shape[3]
            and mine.dtype == t.dtype
            and mine.device == t.device
            for mine, t in zip(self.pair, new, strict=True)
        )

    def describe(self) -> str:
        keys = self.pair[0]
        return f"{len(keys)} rows of {keys.dtype} on {keys.device}"

    def last(self, count: int) -> Pair:
        return tuple(t.narrow(2, self.end - count, count) for t in self.pair)

    def append(self, keys: torch.Tensor, values: torch.Tensor, kept: int, limit: int) -> Pair:
        """Put the new columns behind the last ``kept`` ones, and return both."""
        n = keys.shape[2]
        if kept == 0:
            self.end = 0
        if self.end + n > self.pair[0].shape[2]:
            if kept + n > limit:  # more than a layer with a window has room for
                return self._append_many(keys, values, kept, limit)
            self._make_room(kept, n, limit)
        for stored, new in zip(self.pair, (keys, values), strict=True):
            stored.narrow(2, self.end, n).copy_(new)
        self.end += n
        return self.last(kept + n)

    def _make_room(self, kept: int, n: int, limit: int) -> None:
        """Move the kept columns to the front, of larger memory if they need it."""
        old, room = self.last(kept), self.pair[0].shape[2]
        if room < limit:
            self.pair = self._allocate(self.pair, min(limit, max(2 * room, kept + n)))
        else:  # they may overlap the place where they go
            old = tuple(t.clone() for t in old)
        for stored, columns in zip(self.pair, old, strict=True):
            stored.narrow(2, 0, kept).copy_(columns)
        self.end = kept

    def _append_many(self, keys, values, kept: int, limit: int) -> Pair:
        """More new columns than there is room for: attend to all, store the last ones."""
        both = tuple(torch.cat(t, dim=2) for t in zip(self.last(kept), (keys, values), strict=True))
        if self.pair[0].shape[2] < limit:
            self.pair = self._allocate(self.pair, limit)
        self.end = min(limit, both[0].shape[2])
        for stored, columns in zip(self.pair, both, strict=True):
            stored.narrow(2, 0, self.end).copy_(columns[:, :, -self.end :])
        return both


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of unequal length as one batch: ids (b, longest), padded on the left, and lengths.

    The lengths, (b,), tell padding from text, so ``pad_id`` may be any id of the vocabulary. Raises
    ``ValueError`` if a prompt is empty, or if there is none.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("each prompt needs at least one token, and there must be one prompt")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    idx = torch.full((len(prompts), int(lengths.max())), pad_id)
    for row, prompt in zip(idx, prompts, strict=True):
        row[-len(prompt) :] = torch.as_tensor(prompt)
    return idx, lengths


def _tensors(state) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for part in state for t in _tensors(part)] if isinstance(state, tuple | list) else []


def _select_rows(state, rows: torch.Tensor):
    if isinstance(state, torch.Tensor):
        return state.index_select(0, rows)
    if isinstance(state, tuple | list):
        return type(state)(_select_rows(part, rows) for part in state)
    return state
