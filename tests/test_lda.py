"""Latent Dirichlet allocation: the algorithm of the paper, real documents, and what a model goes through."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

import cirrus
from cirrus.chunks import Block
from cirrus.errors import ConfigError, DataError
from cirrus.models.lda import LdaModel
from cirrus.models.special import digamma, log_gamma

REUTERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "reuters"
#: scikit-learn's best of batch and online learning on the same documents and halves, 50 passes, seed 0.
EXACT_PERPLEXITY = 1583.0


def make(**params):
    """Return an estimator that runs in this process and behaves the same each time."""
    defaults = {"backend": "inline", "n_workers": 1, "random_state": 0, "tol": None}
    return cirrus.LatentDirichletAllocation(**{**defaults, **params})


@pytest.fixture(scope="module")
def documents():
    """Counts of 30 words in 200 documents, each of mostly one of three topics with words of their own."""
    rng = np.random.default_rng(0)
    topics = np.repeat(np.eye(3), 10, axis=1) * 0.097 + 0.001
    mixtures = rng.dirichlet([0.1] * 3, 200)
    return np.array(
        [rng.multinomial(60, mixture @ topics / (mixture @ topics).sum()) for mixture in mixtures]
    )


@given(x=st.floats(1e-3, 1e7))
def test_special_functions_are_scipys(x):
    """Digamma and log gamma agree with scipy's to eleven figures."""
    assert digamma(np.array(x)) == pytest.approx(scipy.special.digamma(x), rel=1e-11, abs=1e-11)
    assert log_gamma(np.array(x)) == pytest.approx(scipy.special.gammaln(x), rel=1e-11, abs=1e-11)


def test_topics_are_found(documents):
    """Each topic's ten words come back together, and each document's mixture says which it is of."""
    est = make(n_topics=3, batch_size=50, epochs=20).fit(documents)
    found = sorted(sorted(map(int, words)) for words in est.top_words([str(i) for i in range(30)], 10))
    assert found == [list(range(first, first + 10)) for first in (0, 10, 20)]
    mixtures = est.transform(documents)
    assert mixtures.shape == (200, 3)
    np.testing.assert_allclose(mixtures.sum(axis=1), 1.0)
    assert est.perplexity(documents) < 0.6 * make(n_topics=1, epochs=2).fit(documents).perplexity(documents)
    np.testing.assert_allclose(est.fit_transform(documents), est.transform(documents))


@pytest.mark.parametrize(("era_log_decay", "n_eras", "error"), [(57.0, 1, 1e-9), (8.0, 3, 1e-2)])
def test_a_step_is_that_of_the_paper(documents, era_log_decay, n_eras, error):
    """The tables give lambda as (1 - rho) lambda + rho (eta + D/|B| statistics) does, across eras too."""
    params = {"n_topics": 3, "n_documents": 200, "n_words": 30, "n_steps": 100, "alpha": 0.5, "eta": 0.2}
    model = LdaModel(**params, decay=0.51, offset=1.0, era_log_decay=era_log_decay)
    assert model.n_eras == n_eras
    tables = {t.name: np.full((t.n_rows, t.width), t.initial_mean) for t in model.tables(30)}
    rng = np.random.default_rng(1)
    tables["words.0"] += rng.normal(size=(30, 3)) * 0.1
    tables["totals.0"] = tables["words.0"].sum(axis=0)[None]
    expected = tables["words.0"] + 0.2
    dataset = cirrus.load_arrays(documents, np.zeros(200), shuffle=False)
    (block,) = dataset.blocks()
    for step in range(100):
        first = 10 * (step % 20)
        batch = block.rows(first, first + 10)
        pulled = {name: tables[name][ids] for name, ids in model.ids(batch).items()}
        found = model._infer({n: v if n.startswith("words") else tables[n] for n, v in pulled.items()}, batch)
        statistics = np.zeros((30, 3))
        statistics[batch.ids] = found.statistics()
        rho = (1.0 + step + 1) ** -0.51
        expected = (1 - rho) * expected + rho * (0.2 + 200 / 10 * statistics)
        for name, values in model.gradient(pulled, batch).values.items():
            np.add.at(tables[name], model.ids(batch)[name], values)
        words, totals = model.topics(tables)
        np.testing.assert_allclose(words, expected, rtol=error)
        np.testing.assert_allclose(totals, expected.sum(axis=0), rtol=error)


def test_the_bound_rises_and_is_watched(documents):
    """Validation loss is the negative bound per word, and falls while topics are found."""
    train, held_out = documents[:150], documents[150:]
    est = make(n_topics=3, batch_size=50, epochs=10).fit(train, validation=held_out)
    losses = [point.validation_loss for point in est.history_ if point.validation_loss is not None]
    assert losses[-1] == pytest.approx(np.log(est.perplexity(held_out)), rel=1e-3)
    # How often it is watched is a matter of time, so that the first figure may be late.
    assert losses[-1] <= losses[0]
    one = make(n_topics=1, epochs=2).fit(train)
    assert losses[-1] < np.log(one.perplexity(held_out)) - 0.5


def test_models_are_saved_and_go_on(documents, tmp_path):
    """A loaded model knows its topics and its clock: one more epoch is the same."""
    est = make(n_topics=3, batch_size=50, epochs=4).fit(documents)
    assert est.n_updates_ == 16
    est.save(tmp_path / "model")
    loaded = cirrus.load_model(tmp_path / "model").set_params(backend="inline", random_state=0)
    np.testing.assert_array_equal(loaded.transform(documents), est.transform(documents))
    np.testing.assert_array_equal(
        loaded.partial_fit(documents).components_, est.partial_fit(documents).components_
    )
    assert est.n_updates_ == 20
    assert est.n_iter_ == 5


def test_scikit_learns_object_has_the_same_topics(documents):
    """`to_sklearn` gives a fitted object that finds the same topics in documents."""
    est = make(n_topics=3, batch_size=50, epochs=5).fit(documents)
    np.testing.assert_allclose(est.to_sklearn().transform(documents), est.transform(documents), atol=5e-3)


def test_shards_and_workers(documents):
    """In rounds, 1, 2 and 3 shards give the same topics to the bit; 3 workers in rounds count every step."""
    models = [
        make(n_topics=3, batch_size=50, epochs=2, n_shards=n, staleness=0).fit(documents).components_
        for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])
    est = make(n_topics=3, batch_size=20, epochs=5, n_shards=2, n_workers=3, staleness=0).fit(documents)
    assert est.n_updates_ == est.history_[-1].updates


def test_documents_may_be_empty_or_weighted(documents):
    """A document without words has the prior's topics; a weight multiplies what it tells."""
    some = documents.copy()
    some[0] = 0
    est = make(n_topics=3, epochs=3).fit(some)
    np.testing.assert_allclose(est.transform(some)[0], 1 / 3)
    model = LdaModel(n_topics=2, n_documents=10, n_words=5, n_steps=4, alpha=0.5, eta=0.5)
    ids = np.array([0, 1, 3], np.uint32)
    plain = Block.from_csr(np.array([0, 3]), ids, np.array([1, 2, 1], np.float32), np.zeros(1, np.float32))
    heavy = dataclasses.replace(plain, weights=np.array([2.0], np.float32))
    tables = {t.name: np.full((t.n_rows, t.width), t.initial_mean) for t in model.tables(5)}
    tables["words.0"] += np.arange(10).reshape(5, 2) * 0.1
    pulled = {name: tables[name][rows] for name, rows in model.ids(plain).items()}
    one, two = model.gradient(pulled, plain), model.gradient(pulled, heavy)
    np.testing.assert_allclose(two.values["words.0"], 2 * one.values["words.0"])
    assert two.loss_sum == pytest.approx(2 * one.loss_sum)
    assert two.weight_sum == 2 * one.weight_sum


def test_wrong_parameters_are_refused_by_name(documents):
    """Counts below 0, priors, topics and decay that cannot be, and vocabularies of another size."""
    for name, value in (
        ("n_topics", 0),
        ("doc_topic_prior", 0.0),
        ("learning_decay", 0.5),
        ("learning_offset", 0),
    ):
        with pytest.raises(ConfigError, match=name):
            make(**{name: value}).fit(documents)
    with pytest.raises(ValueError, match="Negative"):
        make().fit(-documents)
    with pytest.raises(DataError, match="vocabulary has 2 words"):
        make(epochs=1).fit(documents).top_words(["a", "b"])
    with pytest.raises(ConfigError, match="n: must be a whole number"):
        make(epochs=1).fit(documents).top_words([str(word) for word in range(documents.shape[1])], 0)


def test_documents_without_a_single_word(documents):
    """They teach nothing, have the prior's topics, and no perplexity."""
    empty = np.zeros_like(documents[:3])
    est = make(epochs=1).fit(documents)
    np.testing.assert_allclose(est.transform(empty), 1.0 / est.n_topics)
    with pytest.raises(DataError, match="no words"):
        est.perplexity(empty)
    assert np.isfinite(make(epochs=1).fit(empty).components_).all()


@pytest.mark.skipif(not REUTERS.is_dir(), reason="the Reuters articles are not beside the project")
def test_real_documents_are_completed(tmp_path):
    """Half of each of 40 articles foretells the other half within 3 % of scikit-learn's perplexity."""
    path, words = tmp_path / "reuters.ldac", tmp_path / "reuters.tokens"
    for file in (path, words):
        file.write_bytes(gzip.decompress((REUTERS / f"{file.name}.gz").read_bytes()))
    dataset = cirrus.load_bag_of_words(path, tmp_path / "data", vocabulary=words, shuffle=False)
    counts = dataset.to_csr()[0].toarray().astype(int)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(counts))
    held_out, train = counts[order[:40]], counts[order[40:]]
    seen, asked = np.zeros_like(held_out), np.zeros_like(held_out)
    for row, document in enumerate(held_out):
        tokens = np.repeat(np.arange(len(document)), document)
        rng.shuffle(tokens)
        half = len(tokens) // 2
        np.add.at(seen[row], tokens[:half], 1)
        np.add.at(asked[row], tokens[half:], 1)
    est = make(n_topics=20, epochs=30).fit(train)
    topics = est.components_ / est.components_.sum(axis=1, keepdims=True)
    chances = est.transform(seen) @ topics
    perplexity = np.exp(-(asked * np.log(chances)).sum() / asked.sum())
    assert perplexity <= 1.03 * EXACT_PERPLEXITY
    top = est.top_words(dataset.vocabulary("words"), 8)
    assert any({"church", "catholic"} & set(topic) for topic in top)
    assert len(top) == 20
