"""Latent Dirichlet allocation by online variational Bayes (Hoffman, Blei and Bach, 2010), without state.

Topics are Dirichlet distributions with parameters ``lambda``; each minibatch B of the D documents moves them,
``lambda <- (1 - rho_t) lambda + rho_t (eta + D/|B| * statistics)`` with ``rho_t = (offset + t)^-decay``. That
changes every row, of every word, at every step; so the tables hold S instead:

    ``lambda_t = eta + s_t S``  with  ``s_t = prod_{i <= t} (1 - rho_i)``,

and a step adds ``(rho_t / s_t) * D/|B| * statistics`` to the words it touches. The clock t is a table of one
value to which each step adds 1: a worker knows it from the pull that its gradient is made of.

``s_t`` falls without end, and float32 does not. When it has fallen by ``ERA_LOG_DECAY``, an *era* ends: later
steps add to a fresh table, relative to its own start. Two eras count at a time; what is older weighs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from cirrus.config import OptimizerConfig
from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.base import Array, Gradients, LossSum, TableSpec
from cirrus.models.losses import sample_weights
from cirrus.models.special import digamma, log_gamma

if TYPE_CHECKING:
    from cirrus.chunks import Block

WORDS = "words"
TOTALS = "totals"
CLOCK = "clock"
CLOCK_START = "clock_start"
#: Logarithm of how far s falls in an era: to 1e-25, so that S of a billion documents stays in float32.
ERA_LOG_DECAY = 57.0
MAX_ERAS = 8
#: Inference in a document ends after this many rounds, or when its weights change less than the tolerance.
MAX_ROUNDS = 100
ROUNDS_AT_A_TIME = 10
TOLERANCE = 1e-3

_PARAMS = frozenset(
    {"n_topics", "alpha", "eta", "decay", "offset", "n_documents", "n_words", "n_steps", "start"}
)
_ONE_ROW = np.zeros(1, dtype=np.uint32)
_ONE_ROW.setflags(write=False)
_ADD = OptimizerConfig(name="add")


class LdaModel:
    """Documents are mixtures of topics.

    Args:
        n_topics: Number of topics.
        n_documents: D: of the whole data.
        n_words: Size of the vocabulary.
        n_steps: Most steps that a run can have.
        alpha: Prior of a document's topics.
        eta: Prior of a topic's words.
        decay: How quickly minibatches lose weight, in (0.5, 1].
        offset: Makes the first ones weigh less; >= 1.
        start: The clock when the run begins.
        era_log_decay: Logarithm of how far s falls in an era.
    """

    name: ClassVar[str] = "lda"

    def __init__(
        self,
        *,
        n_topics: int,
        n_documents: int,
        n_words: int,
        n_steps: int,
        alpha: float,
        eta: float,
        decay: float = 0.7,
        offset: float = 10.0,
        start: int = 0,
        era_log_decay: float = ERA_LOG_DECAY,
    ) -> None:
        if not 0.5 < decay <= 1.0:
            raise ConfigError("learning_decay", f"must be above 0.5 and at most 1, got {decay!r}")
        self._n_topics = n_topics
        self._n_documents = n_documents
        self._n_words = n_words
        self._alpha = alpha
        self._eta = eta
        self._start = start
        self._era_log_decay = era_log_decay
        steps = np.arange(1, n_steps + 1, dtype=np.float64) + start
        self._rates = (offset + steps) ** -decay
        self._log_decay = np.concatenate([[0.0], np.cumsum(-np.log1p(-self._rates))])
        self.n_eras = 1 + int(self._log_decay[-1] // era_log_decay)
        if self.n_eras > MAX_ERAS:
            raise ConfigError(
                "learning_decay",
                f"{decay!r} forgets too quickly for {n_steps:,} steps: raise it",
            )

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            n_topics=check.whole(params, "n_topics", 10),
            n_documents=check.whole(params, "n_documents", 0),
            n_words=check.whole(params, "n_words", 0),
            n_steps=check.whole(params, "n_steps", 0),
            alpha=check.number(params, "alpha", 0.1, above=0.0),
            eta=check.number(params, "eta", 0.1, above=0.0),
            decay=check.number(params, "decay", 0.7),
            offset=check.number(params, "offset", 10.0, least=1.0),
            start=check.whole(params, "start", 0, least=0),
        )

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return S of words and of all words together, an era each; and the clock, now and at the start."""
        k, mean = self._n_topics, 1.0 - self._eta
        # Hoffman's start is Gamma(100, 1/100), which is this normal distribution but for its skew.
        words = [
            TableSpec(
                name=f"{WORDS}.{era}",
                n_rows=n_features,
                width=k,
                optimizer=_ADD,
                initial_mean=mean if era == 0 else 0.0,
                initial_scale=0.1 if era == 0 else 0.0,
            )
            for era in range(self.n_eras)
        ]
        totals = [
            TableSpec(
                name=f"{TOTALS}.{era}",
                n_rows=1,
                width=k,
                optimizer=_ADD,
                initial_mean=mean * n_features if era == 0 else 0.0,
            )
            for era in range(self.n_eras)
        ]
        clocks = [
            TableSpec(name=name, n_rows=1, optimizer=_ADD, initial_mean=float(self._start))
            for name in (CLOCK, CLOCK_START)
        ]
        return (*words, *totals, *clocks)

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the words that occur in the minibatch, an era each, and the single rows."""
        found = {f"{WORDS}.{era}": block.ids for era in range(self.n_eras)}
        found |= {f"{TOTALS}.{era}": _ONE_ROW for era in range(self.n_eras)}
        return {**found, CLOCK: _ONE_ROW, CLOCK_START: _ONE_ROW}

    def steps_done(self, parameters: Mapping[str, Array]) -> int:
        """Return how many steps the parameters have seen since the run began."""
        steps = int(parameters[CLOCK][0, 0]) - int(parameters[CLOCK_START][0, 0])
        return min(max(steps, 0), len(self._rates))

    def topics(self, parameters: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return lambda of the words at hand, (n_words, n_topics), and its sums over all, (n_topics,)."""
        done = self.steps_done(parameters)
        log_decay = float(self._log_decay[done])
        era = min(int(log_decay // self._era_log_decay), self.n_eras - 1)
        n_words = len(parameters[f"{WORDS}.0"])
        words = np.full((n_words, self._n_topics), self._eta)
        totals = np.full(self._n_topics, self._eta * self._n_words)
        for counted in range(max(0, era - 1), era + 1):
            s = np.exp(counted * self._era_log_decay - log_decay)
            words += s * parameters[f"{WORDS}.{counted}"].astype(np.float64)
            totals += s * parameters[f"{TOTALS}.{counted}"][0].astype(np.float64)
        # Steps of other workers, still under way, may let sums and decay be of two moments.
        return np.maximum(words, self._eta), np.maximum(totals, self._eta * self._n_words)

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return what a step adds to the tables of the current era, and to the clock."""
        documents = self._infer(parameters, block)
        done = min(self.steps_done(parameters), len(self._rates) - 1)
        log_decay = float(self._log_decay[done + 1])
        era = min(int(log_decay // self._era_log_decay), self.n_eras - 1)
        s = np.exp(era * self._era_log_decay - log_decay)
        factor = self._rates[done] / s * self._n_documents / block.n_rows
        added = factor * documents.statistics()
        values = {
            f"{WORDS}.{era}": added,
            f"{TOTALS}.{era}": added.sum(axis=0)[None],
            CLOCK: np.ones((1, 1)),
        }
        return Gradients(-float(documents.bounds().sum()), float(documents.counts.sum()), values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the negative bound on the documents' log likelihood, in all; its weight is their words."""
        documents = self._infer(parameters, block)
        return LossSum(-float(documents.bounds().sum()), float(documents.counts.sum()))

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return each document's topics, float64 of shape (n_rows, n_topics), rows adding up to 1."""
        return self._infer(parameters, block).mixtures()

    def _infer(self, parameters: Mapping[str, Array], block: Block) -> Documents:
        words, totals = self.topics(parameters)
        return infer(expected_words(words, totals), block, self._alpha)


def expected_words(words: Array, totals: Array) -> Array:
    """Return ``exp(E[log beta])`` of Dirichlet parameters, shape (n_words, n_topics).

    Args:
        words: Parameters of some words, shape (n_words, n_topics).
        totals: Sums over all words, shape (n_topics,).
    """
    expected: Array = np.exp(digamma(words) - digamma(totals))
    return expected


@dataclass(frozen=True, slots=True)
class Documents:
    """Some documents and what inference found in them."""

    alpha: float
    n_rows: int
    n_words: int
    rows: Array
    """The document of each entry."""
    columns: Array
    """The word of each entry, among those at hand."""
    counts: Array
    """How often, times the document's weight."""
    weights: Array
    """Of documents."""
    gamma: Array
    """Dirichlet parameters of the documents' topics, shape (n_rows, n_topics)."""
    words: Array
    """``exp(E[log beta])`` of each entry's word, shape (n_entries, n_topics)."""

    def _expected_topics(self) -> Array:
        return _expected_topics(self.gamma)

    def mixtures(self) -> Array:
        """Return gamma with rows that add up to 1."""
        shares: Array = self.gamma / self.gamma.sum(axis=1, keepdims=True)
        return shares

    def statistics(self) -> Array:
        """Return the expected count of each word in each topic, shape (n_words, n_topics)."""
        topics = self._expected_topics()[self.rows]
        shares = topics * self.words
        shares *= (self.counts / np.maximum(shares.sum(axis=1), np.finfo(np.float64).tiny))[:, None]
        k = shares.shape[1]
        where = (self.columns[:, None] * k + np.arange(k)).ravel()
        return np.bincount(where, shares.ravel(), self.n_words * k).reshape(self.n_words, k)

    def bounds(self) -> Array:
        """Return the bound on each document's log likelihood given the topics, times its weight."""
        topics = self._expected_topics()
        likelihood = np.einsum("ek,ek->e", topics[self.rows], self.words)
        logarithms = np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)) * self.counts
        words = np.bincount(self.rows, logarithms, self.n_rows)
        k, alpha, gamma = self.gamma.shape[1], self.alpha, self.gamma
        priors = ((alpha - gamma) * np.log(np.maximum(topics, np.finfo(np.float64).tiny))).sum(axis=1)
        priors += log_gamma(gamma).sum(axis=1) - log_gamma(gamma.sum(axis=1))
        priors += float(log_gamma(np.array(k * alpha)) - k * log_gamma(np.array(alpha)))
        bounds: Array = words + self.weights * priors
        return bounds


def _expected_topics(gamma: Array) -> Array:
    expected: Array = np.exp(digamma(gamma) - digamma(gamma.sum(axis=1, keepdims=True)))
    return expected


def infer(words: Array, block: Block, alpha: float) -> Documents:
    """Find the topics of documents, given those of words: the E step, for all rows of a block at once.

    Args:
        words: ``exp(E[log beta])`` of the block's ids, shape (n_ids, n_topics).
        block: Documents; values are counts.
        alpha: Prior of a document's topics.
    """
    indptr, indices, values = block.to_csr()
    columns = np.searchsorted(block.ids, indices)
    n_rows, k = block.n_rows, words.shape[1]
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    counts = values.astype(np.float64)
    by_entry = words[columns]
    gamma = alpha + np.repeat(np.bincount(rows, counts, n_rows)[:, None] / k, k, axis=1)
    open_rows = np.unique(rows)
    for _ in range(0, MAX_ROUNDS, ROUNDS_AT_A_TIME):
        if not open_rows.size:
            break
        # Documents that have settled are left out now and then: some take many more rounds than most.
        chosen = np.zeros(n_rows, np.bool_)
        chosen[open_rows] = True
        entries = chosen[rows]
        place = np.searchsorted(open_rows, rows[entries])
        found, settled = _rounds(gamma[open_rows], by_entry[entries], counts[entries], place, alpha)
        gamma[open_rows] = found
        open_rows = open_rows[~settled]
    weights = sample_weights(block)
    if weights is None:
        weights = np.ones(n_rows)
    return Documents(
        alpha=alpha,
        n_rows=n_rows,
        n_words=len(words),
        rows=rows,
        columns=columns,
        counts=counts * weights[rows],
        weights=weights,
        gamma=gamma,
        words=by_entry,
    )


def _rounds(gamma: Array, words: Array, counts: Array, rows: Array, alpha: float) -> tuple[Array, Array]:
    """Do some rounds of inference for documents that all have words.

    Args:
        gamma: Shape (n_rows, n_topics).
        words: Of entries, row after row: shape (n_entries, n_topics).
        counts: Shape (n_entries,).
        rows: Of entries, ascending from 0 without gaps.
        alpha: Prior of a document's topics.

    Returns:
        The new gamma, and which documents have settled.
    """
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    change = np.full(len(gamma), np.inf)
    for _ in range(ROUNDS_AT_A_TIME):
        topics = _expected_topics(gamma)
        likelihood = np.einsum("ek,ek->e", topics[rows], words)
        ratios = counts / np.maximum(likelihood, np.finfo(np.float64).tiny)
        found = alpha + topics * np.add.reduceat(words * ratios[:, None], first, axis=0)
        change = np.abs(found - gamma).mean(axis=1)
        gamma = found
        if change.max() < TOLERANCE:
            break
    return gamma, change < TOLERANCE
