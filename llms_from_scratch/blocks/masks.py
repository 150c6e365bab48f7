"""Who may look at whom."""

import torch


def attention_mask(
    n: int,
    device: torch.device,
    length: int = 0,
    window: int | None = None,
    padding: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """True where one of ``n`` new tokens must not look: in its future, beyond its window, padding.

    Before the new tokens, ``length`` others have been seen, of which a layer with a ``window`` has
    kept the last ``window - 1``: a token looks at ``window`` tokens, itself included. The columns
    of the result are the kept tokens and the new ones: (n, kept + n), or (b, 1, n, kept + n) if
    ``padding`` (b,) says how many tokens of each row are none.

    None stands for what needs no mask in memory: a single new token that sees all, or new tokens
    alone, each of which sees those before it.

    >>> attention_mask(3, torch.device("cpu"), length=4, window=3).int()
    tensor([[0, 0, 0, 1, 1],
            [1, 0, 0, 0, 1],
            [1, 1, 0, 0, 0]], dtype=torch.int32)
    """
    kept = length if window is None else min(length, window - 1)
    fits = window is None or kept + n <= window
    if padding is None and (n == 1 or (kept == 0 and fits)):
        return None
    columns = torch.arange(length - kept, length + n, device=device)
    new = columns[kept:, None]  # (n, 1)
    hidden = columns > new  # (n, kept + n)
    if window is not None:
        hidden = hidden | (columns <= new - window)
    if padding is None:
        return hidden
    empty = columns < padding[:, None, None, None]  # (b, 1, 1, kept + n)
    # Padding sees itself: the softmax of a row without any column would not be a number
    return (hidden | empty) & (columns != new)
