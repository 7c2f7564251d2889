"""Latent Dirichlet allocation as an estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import numpy as np
from sklearn import decomposition
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.config import ModelConfig, whole_number
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Array, Estimator, RunParams, SgdParams
from cirrus.frontend.intake import TrainingData, Wanted
from cirrus.frontend.planning import auto_batch_size, auto_epochs
from cirrus.frontend.raw_rows import any_blocks
from cirrus.models.lda import CLOCK, CLOCK_START, TOTALS, WORDS, Documents, LdaModel, expected_words, infer
from cirrus.paramserver.checkpoint import Checkpoint

_ROWS_AT_A_TIME = 1024


class LatentDirichletAllocation(TransformerMixin, Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Finds topics in documents by online variational Bayes (Hoffman, Blei and Bach, 2010).

    Data is a dataset of :func:`cirrus.load_bag_of_words`, or an array or sparse matrix of word counts.

    Args:
        n_topics: Number of topics.
        doc_topic_prior: Prior of a document's topics; None: 1 / n_topics.
        topic_word_prior: Prior of a topic's words; None: 1 / n_topics.
        learning_decay: How quickly early minibatches lose weight, above 0.5 and at most 1.
        learning_offset: Larger values give the first minibatches less weight; at least 1.
        **run: Parameters of :class:`cirrus.frontend.base.Estimator`.

    Attributes:
        components_: float64 of shape (n_topics, n_words): the topics' Dirichlet parameters, which are counts.
        n_updates_: Minibatches seen.

    Example:
        >>> import cirrus
        >>> docs = cirrus.load_bag_of_words("reuters.ldac", "data/reuters")  # doctest: +SKIP
        >>> est = cirrus.LatentDirichletAllocation(n_topics=20).fit(docs)  # doctest: +SKIP
        >>> est.top_words(docs.vocabulary("words"), 5)[0]  # doctest: +SKIP
        ['church', 'catholic', 'bishops', 'religious', 'pope']
    """

    loader = "load_bag_of_words"
    _defaults: ClassVar[SgdParams] = {"batch_size": 128}

    components_: Array
    n_updates_: int

    def __init__(
        self,
        *,
        n_topics: int = 10,
        doc_topic_prior: float | None = None,
        topic_word_prior: float | None = None,
        learning_decay: float = 0.7,
        learning_offset: float = 1.0,
        **run: Unpack[RunParams],
    ) -> None:
        params: RunParams = {"batch_size": 128, **run}
        super().__init__(**params)
        self.n_topics = n_topics
        self.doc_topic_prior = doc_topic_prior
        self.topic_word_prior = topic_word_prior
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on some more documents.

        Args:
            X: As in :meth:`fit`.
            y: Ignored by convention: must be None.
            sample_weight: As in :meth:`fit`.
        """
        return self._train_an_epoch(X, y, sample_weight)

    # What a family decides.

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="nothing", non_negative=True)

    def _priors(self) -> tuple[float, float]:
        whole_number(self.n_topics, "n_topics")
        found = []
        for name in ("doc_topic_prior", "topic_word_prior"):
            value = getattr(self, name)
            value = 1.0 / self.n_topics if value is None else value
            if isinstance(value, (bool, str)) or not 0 < value < np.inf:
                raise ConfigError(name, f"must be a positive number or None, got {value!r}")
            found.append(float(value))
        offset = self.learning_offset
        if isinstance(offset, (bool, str)) or not 1 <= offset < np.inf:
            raise ConfigError("learning_offset", f"must be a number >= 1, got {offset!r}")
        return found[0], found[1]

    def _model_config(self, data: TrainingData) -> ModelConfig:
        alpha, eta = self._priors()
        manifest = data.manifest
        batch = auto_batch_size(manifest.n_rows) if self.batch_size == "auto" else int(self.batch_size)
        epochs = auto_epochs(manifest.n_rows) if self.epochs == "auto" else int(self.epochs)
        # A lease's last minibatch may be small, so that there are more of them than rows would need.
        most_leases = 16 * self.n_workers + manifest.n_blocks + 1
        steps = min(manifest.n_rows, manifest.n_rows // batch + most_leases)
        return ModelConfig(
            name=LdaModel.name,
            params={
                "n_topics": int(self.n_topics),
                "n_documents": manifest.n_rows,
                "n_words": manifest.n_features,
                "n_steps": steps * epochs,
                "alpha": alpha,
                "eta": eta,
                "decay": self.learning_decay,
                "offset": self.learning_offset,
                "start": self.n_updates_ if data.goes_on else 0,
            },
        )

    def _take_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Fold the eras of a run into one, so that the next begins where this one ended."""
        tables = {name: arrays["weights"] for name, arrays in checkpoint.tables.items()}
        _, eta = self._priors()
        start, clock = (int(tables[name][0, 0]) for name in (CLOCK_START, CLOCK))
        n_words, k = tables[f"{WORDS}.0"].shape
        model = LdaModel(
            n_topics=k,
            n_documents=1,
            n_words=n_words,
            n_steps=max(1, clock - start),
            alpha=1.0,
            eta=eta,
            decay=self.learning_decay,
            offset=self.learning_offset,
            start=start,
        )
        words, _ = model.topics(tables)
        folded = {
            f"{WORDS}.0": words - eta,
            f"{TOTALS}.0": (words - eta).sum(axis=0)[None],
            CLOCK: np.full((1, 1), clock),
            CLOCK_START: np.full((1, 1), clock),
        }
        arrays = {name: {"weights": values.astype(np.float32)} for name, values in folded.items()}
        super()._take_checkpoint(Checkpoint(tables=arrays, extra=checkpoint.extra))

    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        _, eta = self._priors()
        if tables[f"{WORDS}.0"].shape != (self.n_features_in_, self.n_topics):
            raise DataError(
                f"the parameters are not of {self.n_features_in_} words and {self.n_topics} topics"
            )
        self.components_ = tables[f"{WORDS}.0"].T.astype(np.float64) + eta
        self.n_updates_ = int(tables[CLOCK][0, 0])

    # Use.

    def transform(self, X: Any) -> Array:
        """Return the topics of documents, float64 of shape (n_documents, n_topics); rows add up to 1.

        Args:
            X: A Dataset, array or sparse matrix of counts.
        """
        return np.concatenate([documents.mixtures() for documents in self._infer(X)])

    def perplexity(self, X: Any) -> float:
        """Return ``exp(-bound per word)`` of documents given the topics; lower is better.

        The bound is that of the documents alone: scikit-learn's has a term for the topics, too.

        Raises:
            DataError: The documents are all empty.
        """
        bound = n_words = 0.0
        for documents in self._infer(X):
            bound += float(documents.bounds().sum())
            n_words += float(documents.counts.sum())
        if not n_words:
            raise DataError("X: has no words, of which to tell the perplexity")
        return float(np.exp(-bound / n_words))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the bound on the log likelihood of documents given the topics."""
        return float(sum(documents.bounds().sum() for documents in self._infer(X)))

    def top_words(self, vocabulary: Vocabulary | Sequence[str], n: int = 10) -> list[list[str]]:
        """Return the most probable words of each topic.

        Args:
            vocabulary: What words are called: ``dataset.vocabulary("words")``, or a list.
            n: How many words.

        Raises:
            DataError: The vocabulary is of another size.
            ConfigError: ``n`` is no number of words.
        """
        check_is_fitted(self)
        whole_number(n, "n")
        names = vocabulary.ids() if isinstance(vocabulary, Vocabulary) else list(vocabulary)
        if len(names) != self.n_features_in_:
            raise DataError(f"the vocabulary has {len(names)} words, the model {self.n_features_in_}")
        best = np.argsort(-self.components_, axis=1, kind="stable")[:, :n]
        return [[str(names[word]) for word in topic] for topic in best.tolist()]

    def to_sklearn(self) -> decomposition.LatentDirichletAllocation:
        """Return a fitted ``sklearn.decomposition.LatentDirichletAllocation`` with the same topics."""
        check_is_fitted(self)
        alpha, eta = self._priors()
        found = decomposition.LatentDirichletAllocation(
            self.n_topics, doc_topic_prior=alpha, topic_word_prior=eta, learning_method="online"
        )
        found.doc_topic_prior_, found.topic_word_prior_ = alpha, eta
        found.components_ = self.components_.copy()
        words = expected_words(self.components_.T, self.components_.sum(axis=1))
        found.exp_dirichlet_component_ = np.ascontiguousarray(words.T)
        found.random_state_ = check_random_state(0)
        found.n_features_in_ = self.n_features_in_
        found.n_batch_iter_, found.n_iter_ = self.n_updates_ + 1, self.n_iter_
        return found

    def _infer(self, X: Any) -> list[Documents]:
        check_is_fitted(self)
        alpha, _ = self._priors()
        words = expected_words(self.components_.T, self.components_.sum(axis=1))
        blocks = any_blocks(self, X, rows_at_a_time=_ROWS_AT_A_TIME, ensure_non_negative=True)
        return [infer(words[block.ids], block, alpha) for block in blocks]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.target_tags.required = False
        return tags
