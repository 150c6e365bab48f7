"""Which tokens mattered, and whether a probability can be believed."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from llms_from_scratch.classification.models import TextClassifier
from llms_from_scratch.classification.texts import TextBatch


def gradient_times_input(
    classifier: TextClassifier, token_ids: Sequence[int], label: int
) -> list[float]:
    """How much each token's embedding speaks for ``label`` against the other classes.

    The logit's advantage over the best other one is differentiated with respect to the embeddings,
    and multiplied by them: to first order, what is lost if the token's embedding became zero. The
    classifier must compute all its blocks (``start == 0``).
    """
    was_training, start = classifier.training, classifier.start
    classifier.eval()
    classifier.start = 0
    captured = []
    handle = classifier.model.tok_emb.register_forward_hook(
        lambda module, inputs, output: (
            captured.append(output.detach().requires_grad_(True)) or captured[-1]
        )
    )
    try:
        batch = TextBatch(torch.tensor([list(token_ids)]), torch.tensor([len(token_ids)]))
        logits = classifier(batch)[0, 0]  # (num_classes,)
        others = torch.cat([logits[:label], logits[label + 1 :]])
        (gradient,) = torch.autograd.grad(logits[label] - others.max(), captured[0])
    finally:
        handle.remove()
        classifier.start = start
        classifier.train(was_training)
    return (gradient * captured[0]).sum(dim=-1)[0].tolist()


def calibration(
    probabilities: Sequence[float], correct: Sequence[bool], num_bins: int = 10
) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right answers and number of texts, for each bin that has any.

    >>> calibration([0.95, 0.91, 0.55], [True, True, False], num_bins=2)
    [(0.803..., 0.666..., 3)]
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probability, right in zip(probabilities, correct, strict=True):
        index = min(int(probability * num_bins), num_bins - 1)
        bins.setdefault(index, []).append((probability, right))
    return [
        (
            sum(p for p, _ in pairs) / len(pairs),
            sum(right for _, right in pairs) / len(pairs),
            len(pairs),
        )
        for _, pairs in sorted(bins.items())
    ]


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """Mean distance between confidence and accuracy, each text counting the same (ECE).

    >>> calibration_error([(0.9, 0.8, 10), (0.6, 0.6, 10)])
    0.0499...
    """
    total = sum(count for _, _, count in bins)
    return sum(count * abs(confidence - share) for confidence, share, count in bins) / total


def answer_of(classifier: nn.Module, token_ids: Sequence[int]) -> list[float]:
    """The probabilities of the classes for one text, with all blocks computed."""
    start, classifier.start = classifier.start, 0
    try:
        batch = TextBatch(torch.tensor([list(token_ids)]), torch.tensor([len(token_ids)]))
        with torch.no_grad():
            return torch.softmax(classifier(batch)[0, 0], dim=-1).tolist()
    finally:
        classifier.start = start
