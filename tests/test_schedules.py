"""Learning-rate schedules beside those of PyTorch and transformers."""

import pytest
import torch

from llms_from_scratch.schedules import SCHEDULES, stable_decay

TOTAL, WARMUP, PEAK = 60, 12, 0.004
THEIRS = {
    "warmup, constant": ("get_constant_schedule_with_warmup", {}),
    "warmup, cosine": ("get_cosine_schedule_with_warmup", {"num_training_steps": TOTAL}),
    "warmup, linear": ("get_linear_schedule_with_warmup", {"num_training_steps": TOTAL}),
}


def rates(name: str) -> list[float]:
    return [SCHEDULES[name](step, TOTAL, WARMUP, PEAK) for step in range(TOTAL)]


@pytest.mark.parametrize("name", THEIRS)
def test_after_the_warmup_the_rate_is_that_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    function, options = THEIRS[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = getattr(transformers, function)(optimizer, num_warmup_steps=WARMUP, **options)
    theirs = []
    for _ in range(TOTAL):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(name)[WARMUP:] == pytest.approx(theirs[WARMUP:])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_a_warmup_rises_in_equal_steps_to_the_peak(name):
    expected = [PEAK * (step + 1) / WARMUP for step in range(WARMUP)]
    assert rates(name)[:WARMUP] == pytest.approx(expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_rate_is_above_the_peak_or_below_zero_and_none_rises_after_the_warmup(name):
    found = rates(name)
    assert 0 < min(found) and max(found) == pytest.approx(PEAK)
    assert all(a >= b for a, b in zip(found[WARMUP - 1 :], found[WARMUP:], strict=False))


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_warmup_starts_at_the_peak(name):
    assert SCHEDULES[name](0, TOTAL, 0, PEAK) == pytest.approx(PEAK)


def test_the_stable_phase_is_four_fifths_and_the_decay_goes_to_zero():
    found = [stable_decay(step, 100, 10, 1.0) for step in range(101)]
    assert found[10:81] == [1.0] * 71
    assert found[90] == pytest.approx(0.5) and found[100] == 0
