"""Scalers and hashers on datasets give what scikit-learn gives on arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import mmh3
import numpy as np
import pytest
import scipy.sparse
import sklearn.feature_extraction
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits

import cirrus
from cirrus.chunks import Block, BlockBuilder, ChunkWriter, commit_dataset, new_chunk_prefix
from cirrus.errors import ConfigError, CorruptDataError, DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.outputs import score_any
from cirrus.frontend.preprocessing_steps import Step
from cirrus.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler, load_preprocessing
from cirrus.storage import open_store
from cirrus.worker_runtime.column_hash import ColumnHash, decimal_hashes
from cirrus.worker_runtime.column_map import ColumnMap
from cirrus.worker_runtime.column_statistics import ColumnStatistics
from cirrus.worker_runtime.map_job import pack_arrays, unpack_arrays

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def in_chunks(X: Any, url: str, block_rows: int = 100, chunk_bytes: int = 2_000) -> Dataset:
    """Store rows, in order, as many small chunks."""
    whole = cirrus.load_arrays(X, np.arange(X.shape[0]) % 2, shuffle=False)
    store = open_store(url)
    writer = ChunkWriter(store, new_chunk_prefix(), chunk_bytes=chunk_bytes)
    builder = BlockBuilder(writer, block_rows=block_rows)
    for block in whole.blocks():
        builder.add(block)
    builder.flush()
    manifest = commit_dataset(store, writer.chunks, writer.summary, n_features=X.shape[1])
    return Dataset(store.url, manifest)


def rows_of(dataset: Dataset) -> np.ndarray:
    """Return the rows as a dense array."""
    return dataset.to_csr()[0].toarray()


def sparse_rows(seed: int, n_rows: int = 700, n_features: int = 30, density: float = 0.2) -> Any:
    """Return random rows with an empty column and a constant one."""
    rng = np.random.default_rng(seed)
    X = scipy.sparse.random_array((n_rows, n_features), density=density, rng=rng).toarray()
    X *= rng.lognormal(0, 3, n_features) * rng.choice([-1, 1], n_features)
    X[:, 3] = 0
    X[:, 4] = 7.25
    return X.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("block_rows", [37, 1024])
@pytest.mark.parametrize("feature_range", [(0, 1), (-1, 2)])
def test_min_max_scaler_equals_scikit_learns(n_workers: int, block_rows: int, feature_range: Any) -> None:
    """Attributes and rows are scikit-learn's on digits, whatever the number of chunks and workers."""
    X = load_digits().data
    dataset = in_chunks(X, f"memory://minmax-{n_workers}-{block_rows}/in", block_rows)
    ours = MinMaxScaler(feature_range=feature_range, n_workers=n_workers)
    scaled = ours.fit_transform(dataset, f"memory://minmax-{n_workers}-{block_rows}/out")
    theirs = sklearn.preprocessing.MinMaxScaler(feature_range=feature_range).fit(X)
    for name in ("data_min_", "data_max_", "data_range_", "scale_", "min_", "n_samples_seen_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), err_msg=name, **CLOSE)
    np.testing.assert_allclose(rows_of(scaled), theirs.transform(X), **CLOSE)
    assert len(scaled.chunks) == len(dataset.chunks)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_standard_scaler_equals_scikit_learns(with_mean: bool, with_std: bool) -> None:
    """Attributes and rows are scikit-learn's on digits."""
    X = load_digits().data
    url = f"memory://standard-{with_mean}-{with_std}"
    dataset = in_chunks(X, f"{url}/in")
    ours = StandardScaler(with_mean=with_mean, with_std=with_std)
    scaled = ours.fit_transform(dataset, f"{url}/out")
    theirs = sklearn.preprocessing.StandardScaler(with_mean=with_mean, with_std=with_std).fit(X)
    for name in ("mean_", "var_", "scale_"):
        expected = getattr(theirs, name)
        if expected is None:
            assert getattr(ours, name) is None
        else:
            np.testing.assert_allclose(getattr(ours, name), expected, err_msg=name, **CLOSE)
    np.testing.assert_allclose(rows_of(scaled), theirs.transform(X), **CLOSE)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([0.02, 0.3, 1.0]))
def test_scalers_equal_scikit_learns_on_random_sparse_rows(
    seed: int, block_rows: int, density: float
) -> None:
    """Random rows with empty and constant columns: the same as scikit-learn to 1e-6, and as sparse."""
    X = sparse_rows(seed, 300, 12, density)
    dataset = in_chunks(X, "memory://random-sparse/in", block_rows)
    standard = StandardScaler(with_mean=False).fit(dataset)
    theirs = sklearn.preprocessing.StandardScaler(with_mean=False).fit(X)
    np.testing.assert_allclose(standard.var_, theirs.var_, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(standard.scale_, theirs.scale_, rtol=1e-6)
    scaled = standard.transform(dataset, "memory://random-sparse/out")
    np.testing.assert_allclose(rows_of(scaled), theirs.transform(X), **CLOSE)
    minmax = MinMaxScaler(densify=True).fit(dataset)
    expected = sklearn.preprocessing.MinMaxScaler().fit(X)
    np.testing.assert_allclose(minmax.scale_, expected.scale_, rtol=1e-6)
    filled = minmax.transform(dataset, "memory://random-sparse/filled")
    np.testing.assert_allclose(rows_of(filled), expected.transform(X), **CLOSE)


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 60), st.just(4)), elements=st.floats(-1e6, 1e6, width=32)
    ),
    st.integers(1, 20),
)
@settings(max_examples=25, deadline=None)
def test_statistics_do_not_depend_on_how_rows_are_cut(X: np.ndarray, cut: int) -> None:
    """Merging the statistics of parts gives those of the whole."""
    whole = cirrus.load_arrays(X, np.zeros(len(X)), shuffle=False)
    blocks = list(whole.blocks())
    parts = [block.rows(i, i + cut) for block in blocks for i in range(0, block.n_rows, cut)]
    merged = ColumnStatistics.merge([ColumnStatistics.of_block(part) for part in parts])
    every = merged.with_zeros(len(X))
    exact = X.astype(np.float64)[:, every.ids]
    assert not X[:, np.setdiff1d(np.arange(4), every.ids)].any()
    scale = np.abs(exact).max(axis=0) + 1e-30
    np.testing.assert_allclose(every.means / scale, exact.mean(axis=0) / scale, atol=1e-12)
    np.testing.assert_allclose(every.squares / len(X) / scale**2, exact.var(axis=0) / scale**2, atol=1e-12)
    np.testing.assert_array_equal(every.minima, exact.min(axis=0))
    np.testing.assert_array_equal(every.maxima, exact.max(axis=0))


def test_a_small_variance_beside_a_large_mean_is_found() -> None:
    """Sums of squares would lose every figure of it."""
    X = (2.0**20 + np.random.default_rng(0).integers(0, 4, (5000, 2)) / 8).astype(np.float32)
    dataset = in_chunks(X, "memory://small-variance/in")
    np.testing.assert_allclose(
        StandardScaler().fit(dataset).var_, X.astype(np.float64).var(axis=0), rtol=1e-9
    )


def test_sparse_rows_that_would_become_dense_are_refused_with_a_remedy() -> None:
    """Nothing grows a hundredfold unasked; the error names the parameter that helps."""
    X = sparse_rows(0, density=0.02)
    dataset = in_chunks(X, "memory://refused/in")
    with pytest.raises(ConfigError, match="with_mean=False"):
        StandardScaler().fit_transform(dataset, "memory://refused/out")
    with pytest.raises(ConfigError, match="maps 0 to 0"):
        MinMaxScaler(feature_range=(1, 2)).fit_transform(dataset, "memory://refused/out")
    assert not open_store("memory://refused/out").list()


def test_clip_and_other_data() -> None:
    """Values beyond the range of what was fitted are cut off where that is asked for."""
    X = load_digits().data
    half = in_chunks(X[:200] / 2, "memory://clip/half")
    whole = in_chunks(X, "memory://clip/whole")
    for clip in (True, False):
        scaled = MinMaxScaler(clip=clip).fit(half).transform(whole, f"memory://clip/{clip}")
        expected = sklearn.preprocessing.MinMaxScaler(clip=clip).fit(X[:200] / 2).transform(X)
        np.testing.assert_allclose(rows_of(scaled), expected, **CLOSE)


@pytest.mark.parametrize("alternate_sign", [True, False])
def test_feature_hasher_equals_scikit_learns(alternate_sign: bool) -> None:
    """A column is hashed as scikit-learn hashes its number as text; others keep their values."""
    X = sparse_rows(1)
    dataset = in_chunks(X, "memory://hashed/in")
    rows = [{str(j): row[j] for j in np.flatnonzero(row)} for row in X]
    theirs = sklearn.feature_extraction.FeatureHasher(16, alternate_sign=alternate_sign).transform(rows)
    ours = FeatureHasher(16, alternate_sign=alternate_sign)
    hashed = ours.fit_transform(dataset, "memory://hashed/out")
    np.testing.assert_allclose(rows_of(hashed), theirs.toarray(), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(ours.transform(X).toarray(), theirs.toarray(), rtol=1e-9, atol=1e-9)
    some = FeatureHasher(16, columns=[2, 5, 9], alternate_sign=alternate_sign)
    result = rows_of(some.fit_transform(dataset, "memory://hashed/some"))
    kept = np.delete(np.arange(X.shape[1]), [2, 5, 9])
    np.testing.assert_allclose(result[:, : kept.size], X[:, kept], rtol=1e-6)
    chosen = [{str(j): row[j] for j in (2, 5, 9) if row[j]} for row in X]
    expected = sklearn.feature_extraction.FeatureHasher(16, alternate_sign=alternate_sign).transform(chosen)
    np.testing.assert_allclose(result[:, kept.size :], expected.toarray(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (FeatureHasher(0), "n_features"),
        (FeatureHasher(2**31), "n_features"),
        (FeatureHasher("8"), "n_features"),
        (FeatureHasher(8, alternate_sign="no"), "alternate_sign"),
        (MinMaxScaler((0,)), "feature_range"),
        (MinMaxScaler("01"), "feature_range"),
        (MinMaxScaler((1, 1)), "feature_range"),
    ],
)
def test_parameters_that_cannot_work_are_named(made: Any, field: str) -> None:
    """On a dataset too, and as one of our own errors, which the command line shows in a line."""
    dataset = cirrus.load_arrays(np.eye(3), [0, 1, 1])
    with pytest.raises(ConfigError, match=f"^{field}: must be"):
        made.fit_transform(dataset, "memory://no-params/out")


@pytest.mark.parametrize("column", [1.5, "2", True, -1, 30])
def test_columns_to_hash_are_whole_numbers_of_columns(column: Any) -> None:
    """A fraction would be cut off, and another column be hashed."""
    dataset = in_chunks(sparse_rows(1), "memory://no-columns/in")
    with pytest.raises(ConfigError, match="columns: must be numbers from 0 to 29"):
        FeatureHasher(16, columns=[column]).fit_transform(dataset, "memory://no-columns/out")


def test_arrays_are_treated_as_scikit_learn_does() -> None:
    """NaN is left out and kept; infinity is an error; sparse matrices stay sparse."""
    X = sparse_rows(2)
    X[5, 1] = np.nan
    X[:, 6] = np.nan
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="All-NaN"):
        ours = MinMaxScaler().fit(X)
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        theirs = sklearn.preprocessing.MinMaxScaler().fit(X)
    np.testing.assert_array_equal(ours.transform(X), theirs.transform(X))
    X[5, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        StandardScaler().fit(X)
    with pytest.raises(DataError, match="NaN, infinity"):
        cirrus.load_arrays(X, np.zeros(len(X)))
    X = np.abs(sparse_rows(3))
    X[:, 4] = 0
    sparse = MinMaxScaler().fit(X).transform(scipy.sparse.csr_array(X))
    np.testing.assert_allclose(
        sparse.toarray(), sklearn.preprocessing.MinMaxScaler().fit_transform(X), **CLOSE
    )


@given(
    st.integers(0, 2**16),
    st.sampled_from([None, "target", "hash"]),
    st.lists(st.floats(-2, 2).map(lambda x: round(x)), min_size=12, max_size=12),
)
def test_sparse_rows_become_what_arrays_become(seed: int, moves: str | None, offset: list[int]) -> None:
    """Whichever of the columns have zeros that do not stay zero, and wherever the columns go."""
    X = sparse_rows(seed, n_rows=20, n_features=12)
    target = np.random.default_rng(seed).integers(0, 5, 12).astype(np.uint32) if moves == "target" else None
    columns = ColumnMap(
        factor=np.linspace(1, 2, 12),
        offset=np.array(offset, np.float64),
        target=target,
        hashing=ColumnHash(12, 5, True, None) if moves == "hash" else None,
    )
    step = Step.of(columns, "StandardScaler", 12, 12 if moves is None else 5)
    sparse = step.apply_sparse(scipy.sparse.csr_array(X), fill=True)
    np.testing.assert_allclose(sparse.toarray(), step.apply_dense(X), rtol=1e-12, atol=1e-12)


def test_one_column_of_many_is_filled_by_itself() -> None:
    """What it costs to fill zeros is a matter of the columns that are filled, not of all there are."""
    n_features = 2**24
    offset = np.zeros(n_features)
    offset[7] = 1.0
    step = Step.of(ColumnMap(offset=offset), "StandardScaler", n_features, n_features)
    rows = scipy.sparse.csr_array(([3.0], ([1], [2**23])), shape=(5_000, n_features))
    made = step.apply_sparse(rows, fill=True)  # as an array this would be 671 GB
    assert made.nnz == 5_001
    assert made[1, 2**23] == 3.0


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_columns_are_hashed_as_mmh3_hashes_their_digits(numbers: list[int]) -> None:
    """Numbers of any length, whole arrays at once."""
    expected = [mmh3.hash(str(number), 0) for number in [*numbers, 0, 9, 10, 2**32 - 1]]
    found = decimal_hashes(np.array([*numbers, 0, 9, 10, 2**32 - 1], np.uint32))
    np.testing.assert_array_equal(found, expected)


def wide_dataset(url: str) -> Dataset:
    """Store rows with a column of a number near 2**32."""
    rows = scipy.sparse.csr_array(
        (np.array([2.0, 3.0, 5.0, 7.0]), (np.array([0, 0, 1, 3]), np.array([7, 4_000_000_000, 7, 12]))),
        shape=(4, 4_000_000_001),
    )
    return cirrus.load_arrays(rows, np.array([0, 1, 0, 1]), url, shuffle=False)


def test_columns_of_very_high_numbers_cost_no_memory() -> None:
    """Statistics are of the columns that occur; what would need an array of all columns says so instead."""
    dataset = wide_dataset("memory://wide/in")
    tracemalloc.start()
    found = dataset.describe()
    assert found.occurring.ids.tolist() == [7, 12, 4_000_000_000]
    np.testing.assert_allclose(found.occurring.means, [7 / 4, 7 / 4, 3 / 4])
    assert found.first_columns(10).maximum.tolist() == [0.0] * 7 + [5.0] + [0.0] * 2
    for call in (lambda: found.mean, lambda: StandardScaler(with_mean=False).fit(dataset)):
        with pytest.raises(ConfigError, match="4,000,000,001 columns are too many.*FeatureHasher"):
            call()
    for columns, width in ((None, 32), ([12, 4_000_000_000], 32 + 4_000_000_001 - 2)):
        url = f"memory://wide/{width}"
        hashed = FeatureHasher(32, columns=columns).fit_transform(dataset, url)
        assert hashed.n_features == width
        rows = [{"7": 2.0, "4000000000": 3.0}, {"7": 5.0}, {}, {"12": 7.0}]
        chosen = [{k: v for k, v in row.items() if columns is None or int(k) in columns} for row in rows]
        expected = sklearn.feature_extraction.FeatureHasher(32).transform(chosen).toarray()
        np.testing.assert_array_equal(hashed.to_csr()[0][:, width - 32 :].toarray(), expected)
        est = cirrus.LogisticRegression(backend="inline", epochs=1, random_state=0).fit(
            FeatureHasher(32).fit_transform(dataset, f"{url}-fit")
        )
        raw = dataset.to_csr()[0]
        np.testing.assert_allclose(
            est.decision_function(scipy.sparse.csr_array(raw)), est.decision_function(dataset), atol=1e-6
        )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@given(st.lists(st.lists(st.integers(0, 30), max_size=12, unique=True), max_size=6))
@settings(max_examples=50)
def test_statistics_merged_in_ranges_are_those_merged_at_once(columns: list[list[int]]) -> None:
    """How many columns are merged at a time changes nothing, to the bit."""
    rng = np.random.default_rng(0)
    parts = []
    for ids in columns:
        X = rng.normal(size=(3, len(ids)))
        indices = np.tile(np.sort(ids), 3).astype(np.int64)
        block = Block.from_csr(np.arange(4) * len(ids), indices, X.ravel(), np.zeros(3))
        parts.append(ColumnStatistics.of_block(block))
    once, ranges = ColumnStatistics.merge(parts), ColumnStatistics.merge(parts, at_once=3)
    for field in dataclasses.fields(ColumnStatistics):
        np.testing.assert_array_equal(getattr(ranges, field.name), getattr(once, field.name))


def test_missing_values_are_those_of_the_file_and_not_zeros(tmp_path: Path) -> None:
    """A zero is a value; a cell without one is counted, for numeric columns of CSV files."""
    (tmp_path / "rows.csv").write_text("y,a,b\n0,0,1\n1,,2\n0,3,\n1,,0\n")
    dataset = cirrus.load_csv(
        tmp_path / "rows.csv", tmp_path / "out", label="y", numeric=["a", "b"], hash_features=64
    )
    found = dataset.describe()
    assert found.missing[:2].tolist() == [2, 1]
    assert found.zeros[:2].tolist() == [3, 2]
    assert found.missing[2:].sum() == 0
    assert cirrus.load_arrays(np.eye(3), np.arange(3)).describe().missing.sum() == 0


@pytest.mark.parametrize("made", [MinMaxScaler((0, 2)), StandardScaler(with_std=False), FeatureHasher(8)])
def test_fitted_ones_are_cloned_saved_and_loaded(made: Any, tmp_path: Path) -> None:
    """What was saved transforms as before; parameters survive clone and pickle."""
    X = load_digits().data
    made.fit(in_chunks(X, "memory://saved/in"))
    made.save(tmp_path)
    loaded = load_preprocessing(tmp_path)
    assert type(loaded) is type(made)
    a, b = made.transform(X), loaded.transform(X)
    assert abs(a - b).max() == 0
    assert clone(made).get_params() == made.get_params()
    assert type(pickle.loads(pickle.dumps(made))) is type(made)
    (tmp_path / "preprocessing.npz").write_bytes(b"something else")
    with pytest.raises(CorruptDataError, match="damaged"):
        load_preprocessing(tmp_path)


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({}, [0, 8, 1]),
        ({}, [0, 2**32 - 1, 1]),
        ({"n_features_out": 0}, [0, 1, 2]),
        ({"n_features_out": 2**40}, [0, 1, 2]),
        ({"n_features_out": float("inf")}, [0, 1, 2]),
        ({"n_features_in": 0}, []),
        ({"n_features_out": 2}, None),
    ],
)
def test_a_damaged_step_writes_nowhere(change: dict[str, Any], target: list[int] | None) -> None:
    """A step whose targets are beyond the rows it makes is refused when it is read, not when it is done."""
    columns = ColumnMap(target=None if target is None else np.array(target, np.uint32))
    plain = Step.of(columns, "FeatureHasher", 3, 8 if target is not None else 3).to_plain()
    with pytest.raises(CorruptDataError, match="preprocessing"):
        Step.from_plain(plain | change)


def test_a_model_of_preprocessed_rows_predicts_raw_ones(tmp_path: Path) -> None:
    """What was done to the training rows is part of the model, also after saving and loading it."""
    X, y = load_digits(return_X_y=True)
    raw = cirrus.load_arrays(X, y % 2, tmp_path / "raw", random_state=0)
    scaled = StandardScaler().fit_transform(raw, tmp_path / "scaled")
    hashed = FeatureHasher(32, columns=range(40)).fit_transform(scaled, tmp_path / "hashed")
    est = cirrus.LogisticRegression(backend="inline", epochs=3, random_state=0, l1=0.0)
    est.fit(hashed, validation=(X, y % 2))
    est.save(tmp_path / "model")
    model = cirrus.load_model(tmp_path / "model")
    expected = model.decision_function(hashed)
    np.testing.assert_allclose(model.decision_function(raw), expected, atol=1e-4)
    np.testing.assert_allclose(model.decision_function(scaled), expected, atol=1e-4)
    sparse = raw.to_csr()[0]
    for rows in (sparse.toarray(), sparse, scipy.sparse.csc_array(sparse), sparse.toarray().tolist()):
        np.testing.assert_allclose(model.decision_function(rows), expected, atol=1e-4)
    for wrong in (X[:, :5], np.ones((2, 90)), sparse[:, :5]):
        with pytest.raises(DataError, match="expecting 64"):
            model.predict(wrong)
    for problem in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            model.predict(np.where(X > 15, problem, X))
    assert model.score(X, y % 2) > 0.8
    with pytest.raises(DataError, match="another way"):
        model.predict(MinMaxScaler().fit_transform(raw, tmp_path / "other"))
    with pytest.raises(DataError, match="transform it too"):
        est.fit(hashed, validation=raw)


#: Models that have no scores: what they say of rows, and how they are trained here.
WITHOUT_SCORES = {
    "kmeans": (cirrus.KMeans, {"n_clusters": 4}, "transform"),
    "lda": (cirrus.LatentDirichletAllocation, {"n_topics": 3}, "transform"),
}


@pytest.mark.parametrize("name", WITHOUT_SCORES)
def test_models_without_scores_take_raw_rows_too(name: str, tmp_path: Path) -> None:
    """Whatever holds raw rows, k-means and topic models do with them what was done to those trained on."""
    kind, params, method = WITHOUT_SCORES[name]
    X = load_digits().data[:500]
    raw = cirrus.load_arrays(X, np.zeros(500), tmp_path / "raw", shuffle=False)
    scaled = StandardScaler(with_mean=False).fit_transform(raw, tmp_path / "scaled")
    kind(backend="inline", epochs=1, random_state=0, n_workers=1, **params).fit(scaled).save(tmp_path / "m")
    model = cirrus.load_model(tmp_path / "m")
    expected = getattr(model, method)(scaled)
    unscaled = kind(backend="inline", epochs=1, random_state=0, n_workers=1, **params).fit(raw)
    assert np.abs(getattr(unscaled, method)(raw) - expected).max() > 0.01
    for rows in (raw, X, scipy.sparse.csr_array(X)):
        np.testing.assert_allclose(getattr(model, method)(rows), expected, atol=1e-4)
    assert model.score(X) == pytest.approx(model.score(scaled), rel=1e-4)
    ours, theirs = score_any(model, raw).figures[0], score_any(model, scaled).figures[0]
    assert (ours.value, ours.base) == pytest.approx((theirs.value, theirs.base), rel=1e-4)
    with pytest.raises(DataError, match=r"other: was preprocessed in another way"):
        getattr(model, method)(MinMaxScaler().fit_transform(raw, tmp_path / "other"))
    with pytest.raises(ConfigError, match="X: must be a Dataset or arrays, got the path"):
        getattr(model, method)("rows.svm")


@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
def test_training_goes_on_with_preprocessed_rows(how: str, tmp_path: Path) -> None:
    """Raw arrays become what the model so far was trained on, raw datasets are refused."""
    X, y = load_digits(n_class=2, return_X_y=True)
    raw = cirrus.load_arrays(X, y, tmp_path / "raw", shuffle=False)
    scaled = StandardScaler(with_mean=False).fit_transform(raw, tmp_path / "scaled")
    rows = scaled.to_csr()[0].toarray()

    def first(data: Dataset) -> Any:
        params = {"backend": "inline", "epochs": 1, "random_state": 0, "n_workers": 1, "warm_start": True}
        return cirrus.LogisticRegression(**params).fit(data)

    def more(model: Any, *data: Any, **options: Any) -> Any:
        return model.partial_fit(*data) if how == "partial_fit" else model.fit(*data, **options)

    model = more(first(scaled), X, y, validation=(X, y))
    by_hand = first(cirrus.load_arrays(rows, y, shuffle=False))
    more(by_hand, rows, y, validation=(rows, y))
    np.testing.assert_allclose(model.coef_, by_hand.coef_, atol=1e-3)
    if how == "warm_start":
        losses = [est.history_[-1].validation_loss for est in (model, by_hand)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    np.testing.assert_allclose(model.decision_function(X), by_hand.decision_function(rows), atol=0.05)
    more(model, scaled)
    with pytest.raises(DataError, match=r"raw: was not preprocessed as what the model so far"):
        more(model, raw)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_arrays_are_corrupt_data(damages: list[tuple[float, int]]) -> None:
    """Packed arrays with some bytes changed are refused by name, unless nothing that matters was changed."""
    packed = np.arange(5.0)
    data = bytearray(pack_arrays({"a": 1}, {"x": packed}))
    for where, byte in damages:
        data[int(where * len(data))] = byte
    with contextlib.suppress(CorruptDataError):
        _, arrays = unpack_arrays(bytes(data), "x.npz")
        for array in arrays.values():  # under another name, where that was changed
            np.testing.assert_array_equal(array, packed)


def test_arrays_larger_than_their_file_are_refused_unallocated() -> None:
    """A header that claims 10**11 numbers is refused for what it is, before memory is asked for."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**11,)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("meta.json.npy", file.getvalue())
    with pytest.raises(CorruptDataError, match="is not of shape"):
        unpack_arrays(out.getvalue(), "x.npz")


def test_what_fit_transform_does_not_take_of_a_dataset_is_refused(tmp_path):
    """Where functions run is a parameter of the transformer; given elsewhere it is an error that says so."""
    dataset = cirrus.load_arrays(np.eye(3), [0, 1, 1], url=str(tmp_path / "in"))
    for transformer in (MinMaxScaler(), StandardScaler(with_mean=False), FeatureHasher(8)):
        with pytest.raises(ConfigError, match=rf"backend: .*{type(transformer).__name__}\(backend=\.\.\.\)"):
            transformer.fit_transform(dataset, str(tmp_path / "out"), backend="inline")
