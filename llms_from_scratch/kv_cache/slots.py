"""A cache whose rows come and go: texts that began at different times take their steps together.

Shapes: b = texts in the cache, n = new tokens, head_dim = width of a head.
"""

import torch

from llms_from_scratch.kv_cache.cache import KVCache, Pair, _select_rows, _tensors


class SlotCache(KVCache):
    """Keys and values of up to ``slots`` texts; each joins and leaves when it likes.

    All texts end at the same column. A shorter one has padding on its left, which is never attended
    to; keys keep the positions that they had, so a text may move to other columns::

        columns   a b c d     the longest text has no padding
                  . . e f     one that has joined with two tokens
                          ^   the next step fills one column of all rows

    Memory grows with the rows and columns in use, twofold each time. Layers with a window keep all
    columns here, and are shown their window.
    """

    def __init__(self, n_layers: int, slots: int):
        super().__init__(n_layers)
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.slots = slots

    @classmethod
    def for_model(cls, model, slots: int = 8) -> "SlotCache":
        """An empty cache with the model's layers, windows, and context length."""
        cache = cls(len(model.trf_blocks), slots)
        cache.open_for(model, 0)
        return cache

    def reset(self, padding: torch.Tensor | None = None) -> None:
        """Let all texts leave, and free the memory."""
        super().reset()
        self.rows = 0
        self._pairs: list[Pair | None] = [None] * self.n_layers
        self._room = (0, 0)  # rows and columns that there is memory for
        self._end = 0  # texts end before this column of it

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated keys and values, and of other states."""
        held = [pair for pair in self._pairs if pair] + list(self._states.values())
        return sum(tensor.nbytes for part in held for tensor in _tensors(part))

    def join(self, other: KVCache) -> None:
        """Add the text that another cache holds alone, as the last row.

        Raises ``ValueError`` if all slots are taken.
        """
        if self.rows == self.slots:
            raise ValueError(f"all {self.slots} slots are taken: let a text leave first")
        longest = max(self.length, other.length)
        self._make_room(self.rows + 1, longest, 0)
        for layer_idx, held in enumerate(other.get_all()):
            if layer_idx in other._states:
                self._states[layer_idx] = _joined(self._states.get(layer_idx), held)
                continue
            if self._pairs[layer_idx] is None:
                self._pairs[layer_idx] = self._allocate(held)
            for stored, new in zip(self._pairs[layer_idx], held, strict=True):
                stored[self.rows, :, self._end - new.shape[2] : self._end] = new[0]
        mine = [] if self.padding is None else self.padding.tolist()
        padding = [longest - self.length + count for count in mine] + [longest - other.length]
        self.padding = torch.tensor(padding, device=_device_of(other.get(0)))  # (b,)
        self.length, self.rows = longest, self.rows + 1

    def leave(self, row: int) -> None:
        """Forget a text; the last row takes its number."""
        if not 0 <= row < self.rows:
            raise ValueError(f"there is no row {row} of {self.rows}")
        self.rows -= 1
        if not self.rows:
            return self.reset()
        for pair in filter(None, self._pairs):
            for stored in pair:
                stored[row] = stored[self.rows]
        order = [self.rows if i == row else i for i in range(self.rows)]
        order = torch.tensor(order, device=self.padding.device)
        self._states = {i: _select_rows(state, order) for i, state in self._states.items()}
        unused = self.padding[order].min()
        self.padding = self.padding[order] - unused
        self.length -= int(unused)

    def open_for(self, model, n: int) -> None:
        super().open_for(model, n)
        if self.rows and n:
            self._make_room(self.rows, self.length, n)

    def get(self, layer_idx: int) -> Pair | object | None:
        pair = self._pairs[layer_idx]
        return self._states.get(layer_idx) if pair is None else self._last(pair, layer_idx, 0)

    def update(
        self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor | None = None
    ) -> Pair | torch.Tensor:
        """Store new keys and values of all rows; return those to attend to, as ``KVCache`` does."""
        if values is None:
            self._states[layer_idx] = keys
            return keys
        pair, n = self._pairs[layer_idx], keys.shape[2]
        if pair is None or len(keys) != self.rows:
            raise ValueError(f"{self.rows} texts have joined the cache, got keys of {len(keys)}")
        for stored, new in zip(pair, (keys, values), strict=True):
            stored[: self.rows, :, self._end : self._end + n] = new
        return self._last(pair, layer_idx, n)

    def advance(self, n: int) -> None:
        super().advance(n)
        self._end += n

    def _last(self, pair: Pair, layer_idx: int, n: int) -> Pair:
        """Views of what a layer has kept, and of ``n`` new columns."""
        kept = self._kept(layer_idx)
        return tuple(t[: self.rows, :, self._end - kept : self._end + n] for t in pair)

    def _make_room(self, rows: int, longest: int, n: int) -> None:
        """Have memory for so many rows, ``longest`` columns before their end, and ``n`` after it.

        If there is not enough, all texts move to the front of other memory, twice what is needed.
        """
        have_rows, have_columns = self._room
        if rows <= have_rows and longest <= self._end <= have_columns - n:
            return
        rows = have_rows if rows <= have_rows else min(self.slots, max(rows, 2 * have_rows))
        self._room = (rows, max(have_columns, 2 * (longest + n)))
        for layer_idx, old in enumerate(self._pairs):
            if old is not None:
                new = self._allocate(old)
                for target, source in zip(new, old, strict=True):
                    texts = source[: self.rows, :, self._end - self.length : self._end]
                    target[: self.rows, :, longest - self.length : longest] = texts
                self._pairs[layer_idx] = new
        self._end = longest

    def _allocate(self, like: Pair) -> Pair:
        """Memory for one layer; zeros, since not even padding may hold what is not a number."""
        rows, columns = self._room
        with torch.inference_mode(False):  # ordinary tensors, which any mode may write to
            return tuple(
                torch.zeros((rows, t.shape[1], columns, t.shape[3]), dtype=t.dtype, device=t.device)
                for t in like
            )


def _joined(state, new):
    """One more row below a layer's state: a tensor, or several."""
    if state is None:
        return new
    if isinstance(state, torch.Tensor):
        return torch.cat([state, new])
    return type(state)(_joined(*parts) for parts in zip(state, new, strict=True))


def _device_of(state) -> torch.device:
    return state.device if isinstance(state, torch.Tensor) else _device_of(state[0])
