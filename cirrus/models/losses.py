"""Losses of scores, apart from how a model comes by its scores.

A loss takes the scores of a minibatch's rows, float64, and its labels; linear models and factorization
machines share them. Everything of size n_rows is float64, though parameters and the wire are float32: it
costs next to nothing at minibatch size, and a row of weight 2 then gives the same float32 gradient as the row
given twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from cirrus.models.base import Array

if TYPE_CHECKING:
    from cirrus.chunks import Block


class Loss(Protocol):
    """What scores cost, and the slope of that."""

    n_scores: int
    """Scores a row: 1 for scores of shape (n_rows,), else they are of shape (n_rows, n_scores)."""

    def losses(self, scores: Array, block: Block) -> Array:
        """Return the loss of each row, float64 of shape (n_rows,)."""

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return the loss of each row, and its derivative by the score(s), shaped as ``scores``."""

    def metrics(self, scores: Array, block: Block) -> dict[str, Array]:
        """Return further figures, each of shape (n_rows,), whose weighted means say how good scores are."""

    def row_weights(self, block: Block) -> Array | None:
        """Return float64 of shape (n_rows,), or None when every row weighs 1."""


def sample_weights(block: Block) -> Array | None:
    """Return a block's own weights as float64, or None."""
    return None if block.weights is None else block.weights.astype(np.float64)


class _TwoClasses:
    """Rows of the positive class have sign +1, all others -1."""

    n_scores = 1

    def __init__(self, positive: float, class_weight: tuple[float, ...] | None) -> None:
        self._positive = np.float32(positive)
        self._class_weight = class_weight

    def is_positive(self, block: Block) -> Array:
        """Return (n_rows,) bool."""
        positive: Array = block.labels == self._positive
        return positive

    def metrics(self, scores: Array, block: Block) -> dict[str, Array]:
        """Return which rows are classified correctly; a score of exactly 0 is the negative class."""
        return {"accuracy": (scores > 0) == self.is_positive(block)}

    def row_weights(self, block: Block) -> Array | None:
        """Return sample weights times the weights of classes."""
        weights = sample_weights(block)
        if self._class_weight is None:
            return weights
        low, high = self._class_weight
        by_class: Array = np.where(self.is_positive(block), high, low)
        return by_class if weights is None else by_class * weights


class LogLoss(_TwoClasses):
    """``log(1 + exp(-m))`` with the margin m = sign s times score; its slope is ``-s / (1 + exp(m))``.

    Both are taken from ``exp(-|m|)``, which never overflows.

    Args:
        positive: The label of the positive class.
        class_weight: Factors on the weights of the rows of either class; None: 1 and 1.
    """

    def losses(self, scores: Array, block: Block) -> Array:
        """Return the log loss of each row."""
        margins = np.where(self.is_positive(block), scores, -scores)
        return _softplus(margins, np.exp(-np.abs(margins)))

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return log losses and slopes."""
        positive = self.is_positive(block)
        margins = np.where(positive, scores, -scores)
        exponentials = np.exp(-np.abs(margins))
        wrongness = np.where(margins >= 0, exponentials, 1.0)
        wrongness /= exponentials + 1.0
        return _softplus(margins, exponentials), np.where(positive, -wrongness, wrongness)


def _softplus(margins: Array, exponentials: Array) -> Array:
    losses: Array = np.log1p(exponentials)
    losses -= np.minimum(margins, 0.0)
    return losses


class HingeLoss(_TwoClasses):
    """``max(0, 1 - m)`` with the margin m, or its square (Cortes and Vapnik, 1995).

    Args:
        positive: The label of the positive class.
        class_weight: Factors on the weights of the rows of either class; None: 1 and 1.
        squared: Whether it is squared, which makes it smooth.
    """

    def __init__(self, positive: float, class_weight: tuple[float, ...] | None, *, squared: bool) -> None:
        super().__init__(positive, class_weight)
        self._squared = squared

    def losses(self, scores: Array, block: Block) -> Array:
        """Return the hinge loss of each row."""
        return self.losses_and_errors(scores, block)[0]

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return hinge losses and slopes; the slope at the hinge is 0."""
        return _hinge(scores, np.where(self.is_positive(block), 1.0, -1.0), squared=self._squared)


def _hinge(scores: Array, signs: Array, *, squared: bool) -> tuple[Array, Array]:
    short: Array = np.maximum(1.0 - signs * scores, 0.0)
    if squared:
        return short * short, -2.0 * signs * short
    return short, np.where(short > 0, -signs, 0.0)


class SquaredLoss:
    """Half the squared difference to the label."""

    n_scores = 1

    def losses(self, scores: Array, block: Block) -> Array:
        """Return half the squared error of each row."""
        return self.losses_and_errors(scores, block)[0]

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return half squared errors, and errors."""
        errors = scores - block.labels
        return 0.5 * errors * errors, errors

    def metrics(self, scores: Array, block: Block) -> dict[str, Array]:
        """Return the whole squared errors."""
        return {"squared_error": np.square(scores - block.labels)}

    def row_weights(self, block: Block) -> Array | None:
        """Return sample weights."""
        return sample_weights(block)


class _SeveralClasses:
    """A score for each class.

    Args:
        classes: The label of each class, as stored in the dataset.
        class_weight: A factor on the weights of the rows of each class; None: all 1.
    """

    def __init__(self, classes: tuple[float, ...], class_weight: tuple[float, ...] | None) -> None:
        self.n_scores = len(classes)
        codes = np.array(classes, np.float32)
        self._order = np.argsort(codes, kind="stable")
        self._sorted = codes[self._order]
        self._class_weight = None if class_weight is None else np.array(class_weight)

    def class_numbers(self, block: Block) -> Array:
        """Return which class each row is of, intp of shape (n_rows,)."""
        place = np.searchsorted(self._sorted, block.labels)
        return self._order.take(place, mode="clip")

    def metrics(self, scores: Array, block: Block) -> dict[str, Array]:
        """Return which rows are classified correctly; of equal scores the first class wins."""
        return {"accuracy": scores.argmax(axis=1) == self.class_numbers(block)}

    def row_weights(self, block: Block) -> Array | None:
        """Return sample weights times the weights of classes."""
        weights = sample_weights(block)
        if self._class_weight is None:
            return weights
        by_class: Array = self._class_weight[self.class_numbers(block)]
        return by_class if weights is None else by_class * weights


class SoftmaxLoss(_SeveralClasses):
    """``log(sum_j exp(s_j)) - s_y``, the log loss of several classes; slopes are ``p - [j = y]``."""

    def losses(self, scores: Array, block: Block) -> Array:
        """Return the log loss of each row."""
        return self.losses_and_errors(scores, block)[0]

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return log losses, and the slope of each by every score."""
        rows, numbers = np.arange(len(scores)), self.class_numbers(block)
        shifted = scores - scores.max(axis=1, keepdims=True)
        errors = np.exp(shifted)
        totals = errors.sum(axis=1)
        losses: Array = np.log(totals) - shifted[rows, numbers]
        errors /= totals[:, None]
        errors[rows, numbers] -= 1.0
        return losses, errors


class OneVersusRestHinge(_SeveralClasses):
    """The hinge losses of every class against all others, added up.

    Args:
        classes: The label of each class, as stored in the dataset.
        class_weight: A factor on the weights of the rows of each class; None: all 1.
        squared: Whether each is squared.
    """

    def __init__(
        self, classes: tuple[float, ...], class_weight: tuple[float, ...] | None, *, squared: bool
    ) -> None:
        super().__init__(classes, class_weight)
        self._squared = squared

    def losses(self, scores: Array, block: Block) -> Array:
        """Return the summed hinge losses of each row."""
        return self.losses_and_errors(scores, block)[0]

    def losses_and_errors(self, scores: Array, block: Block) -> tuple[Array, Array]:
        """Return summed hinge losses, and the slope of each by every score."""
        signs = np.full(scores.shape, -1.0)
        signs[np.arange(len(scores)), self.class_numbers(block)] = 1.0
        losses, errors = _hinge(scores, signs, squared=self._squared)
        return losses.sum(axis=1), errors
