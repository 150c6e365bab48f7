"""Learning-rate schedules: how the rate goes from the first update of a run to its last.

Each is a function of the update's number ``step`` (from 0), of all ``total`` updates, of those that
are ``warmup``, and of the ``peak`` rate. Appendix D explains warmup and cosine decay.
"""

import math
from collections.abc import Callable


def warm_up(step: int, warmup: int, peak: float) -> float | None:
    """A straight line from ``peak / warmup`` to ``peak``; None after the warmup.

    >>> [warm_up(step, 2, 1.0) for step in range(3)]
    [0.5, 1.0, None]
    """
    return peak * (step + 1) / warmup if step < warmup else None


def constant_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """The peak from the first update to the last, without any warmup."""
    return peak


def warm_constant(step: int, total: int, warmup: int, peak: float) -> float:
    """A warmup, and then the peak to the end."""
    return warm_up(step, warmup, peak) or peak


def cosine_to_zero(step: int, total: int, warmup: int, peak: float) -> float:
    """A warmup, and then half a cosine wave down to 0 (Loshchilov and Hutter, 2017)."""
    progress = (step - warmup) / max(1, total - warmup)
    return warm_up(step, warmup, peak) or peak * 0.5 * (1 + math.cos(math.pi * progress))


def linear_to_zero(step: int, total: int, warmup: int, peak: float) -> float:
    """A warmup, and then a straight line down to 0, as in many published recipes."""
    return warm_up(step, warmup, peak) or peak * (total - step) / max(1, total - warmup)


def stable_decay(step: int, total: int, warmup: int, peak: float, decay: float = 0.2) -> float:
    """Warmup, stable, decay: the peak for long, and a straight line to 0 in the last ``decay`` of
    all updates (Hu et al., "MiniCPM", 2024). One can go on from before the decay."""
    left = (total - step) / (decay * total)
    return warm_up(step, warmup, peak) or peak * min(1.0, left)


def inverse_square_root(step: int, total: int, warmup: int, peak: float) -> float:
    """A warmup, and then the peak times the root of ``warmup / step`` (Vaswani et al., 2017): it
    needs no end."""
    return warm_up(step, warmup, peak) or peak * math.sqrt(max(1, warmup) / (step + 1))


SCHEDULES: dict[str, Callable[[int, int, int, float], float]] = {
    "constant": constant_rate,
    "warmup, constant": warm_constant,
    "warmup, cosine": cosine_to_zero,
    "warmup, linear": linear_to_zero,
    "warmup, stable, decay": stable_decay,
    "warmup, inverse root": inverse_square_root,
}
