"""One cache for the keys and values of a model's layers, allocated once.

Shapes: b = batch size, n = new tokens, head_dim = width of a head. A *column* is a place in the
cache: the i-th token that a row was given, padding included.
"""

from collections.abc import Sequence

import torch


class KVCache:
    """Keys and values of the tokens that a model has seen, for each of its layers.

    Room for ``capacity`` tokens is allocated when the first keys arrive, with their batch size,
    number of heads, dtype and device; nothing grows or moves afterwards. ``capacity=None`` leaves
    the number to the model, which takes its context length.

    Prompts of unequal length share a batch if the shorter ones are padded on the left:
    ``reset(padding)`` says by how many tokens per row. Padding is never attended to, and positions
    count from the first real token. ``length`` is the number of columns in use.
    """

    def __init__(self, n_layers: int, capacity: int | None = None):
        if n_layers < 1 or (capacity is not None and capacity < 1):
            raise ValueError(f"a cache needs layers and room, got {n_layers=}, {capacity=}")
        self.n_layers = n_layers
        self.capacity = capacity
        self._storage: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers
        self.reset()

    def reset(self, padding: torch.Tensor | None = None) -> None:
        """Forget all tokens but keep the memory; ``padding`` (b,) counts what rows begin with."""
        self.length = 0
        self.padding = padding if padding is not None and padding.any() else None

    @property
    def lengths(self) -> torch.Tensor | int:
        """Real tokens of each row, (b,); one number if no row is padded."""
        return self.length if self.padding is None else self.length - self.padding

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory."""
        return sum(t.nbytes for pair in self._storage if pair is not None for t in pair)

    def get(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of a layer so far, views of (b, num_heads, length, head_dim)."""
        pair = self._storage[layer_idx]
        return None if pair is None else tuple(t.narrow(2, 0, self.length) for t in pair)

    def get_all(self) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """``get`` of every layer."""
        return [self.get(layer_idx) for layer_idx in range(self.n_layers)]

    def check_room(self, n: int) -> None:
        """Raise ``ValueError`` if ``n`` more tokens do not fit."""
        if self.capacity is None:
            raise ValueError("nobody has said how large the cache is: give it a capacity")
        if self.length + n > self.capacity:
            raise ValueError(
                f"{n} more tokens do not fit: the cache holds {self.length} of at most "
                f"{self.capacity}. Empty it with reset(), or let generate_text_simple of "
                "llms_from_scratch.kv_cache.generate move the window"
            )

    def positions(self, n: int, device: torch.device) -> torch.Tensor:
        """Positions of the next ``n`` tokens, (n,); (b, n) if rows are padded."""
        columns = torch.arange(self.length, self.length + n, device=device)
        if self.padding is None:
            return columns
        return (columns - self.padding[:, None]).clamp(min=0)

    def visible(self, n: int, device: torch.device) -> torch.Tensor | None:
        """Which columns the next ``n`` tokens may attend to: True for yes, broadcast over heads.

        The result has the shape (n, length + n), or (b, 1, n, length + n) if rows are padded. None
        stands for "all of them" if ``n`` is 1, else for a causal mask of n x n, for both of which
        attention needs no mask in memory.
        """
        if self.padding is None and (n == 1 or self.length == 0):
            return None
        columns = torch.arange(self.length + n, device=device)
        new = columns[self.length :, None]  # (n, 1)
        visible = columns <= new  # (n, length + n)
        if self.padding is None:
            return visible
        real = columns >= self.padding[:, None, None, None]  # (b, 1, 1, length + n)
        # Padding sees itself: the softmax of a row without any column would not be a number
        return visible & real | (columns == new)

    def update(
        self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values (b, num_heads, n, head_dim); return all so far.

        What is returned are views, (b, num_heads, length + n, head_dim). ``length`` itself changes
        with ``advance``, when all layers have stored theirs. Raises ``ValueError`` for too many
        tokens, for keys unlike those in the cache, and if gradients are wanted.
        """
        if keys.requires_grad:
            raise ValueError(
                "a cache keeps no gradients: call the model under torch.no_grad(), or without cache"
            )
        n = keys.shape[2]
        self.check_room(n)
        pair = self._storage[layer_idx]
        if pair is None or not _alike(pair[0], keys):
            pair = self._allocate(layer_idx, keys)
        all_keys, all_values = pair
        all_keys.narrow(2, self.length, n).copy_(keys)
        all_values.narrow(2, self.length, n).copy_(values)
        end = self.length + n
        return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)

    def advance(self, n: int) -> None:
        """Count the ``n`` tokens that every layer has stored."""
        self.length += n

    def _allocate(self, layer_idx: int, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.length:
            old = self._storage[layer_idx][0]
            raise ValueError(
                f"the cache holds {len(old)} rows of {old.dtype} on {old.device}, got {len(keys)} "
                f"rows of {keys.dtype} on {keys.device}: empty it first, with reset()"
            )
        b, num_heads, _, head_dim = keys.shape
        shape = (b, num_heads, self.capacity, head_dim)
        self._storage[layer_idx] = keys.new_empty(shape), keys.new_empty(shape)
        return self._storage[layer_idx]


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
        row[-len(prompt) :] = torch.tensor(prompt)
    return idx, lengths


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ in their number of tokens at most."""
    return (
        a.shape[:2] == b.shape[:2]
        and a.shape[3] == b.shape[3]
        and a.dtype == b.dtype
        and a.device == b.device
    )
