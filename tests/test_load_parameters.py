"""Every parameter of every loader acts: another value gives another dataset, or shows on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_load_functions import Functions, FunctionsBackend

import cirrus
from cirrus.client_backend.loader import LoadProgress

ROWS = 40

SVMLIGHT = "".join(f"{i} {1 + i % 7}:{i}.5 9:1\n" for i in range(ROWS))
CSV = "".join(f"{i},{i % 5},x{i % 3};z,NA\n" for i in range(ROWS))
RATINGS = "".join(f"{i % 9},i{i % 4},{i},99\n" for i in range(ROWS))
LDAC = "".join(f"1 {i}:{1 + i % 3}\n" for i in range(ROWS))
DOCWORD = f"{ROWS}\n{ROWS}\n{ROWS}\n" + "".join(f"{i + 1} {i + 1} 2\n" for i in range(ROWS))
VW = "".join(f"{i % 2} |a x{i} y |b z:{i}\n" for i in range(ROWS))

TABLE: dict[str, Any] = {"label": 0, "numeric": [1], "categorical": [2]}
#: For each loader: a text, the arguments of a call, and, for each parameter, those of another call, whose
# dataset : must differ.
LOADERS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "load_svmlight": (
        SVMLIGHT,
        {},
        {"n_features": {"n_features": 50}, "zero_based": {"zero_based": True}},
    ),
    "load_csv": (
        CSV,
        TABLE,
        {
            "label": {"label": 1, "numeric": [0]},
            "numeric": {"numeric": []},
            "categorical": {"categorical": [2, 3]},
            "sep": {"sep": ";", "label": 1, "numeric": [], "categorical": [0]},
            "hash_features": {"hash_features": 3},
            "header": {"header": True},
            "label_above": {"label_above": 4.0},
            "missing_label": {"missing_label": "drop", "na_values": ["0"]},
            "na_values": {"na_values": ["x1;z"]},
        },
    ),
    "load_ratings": (RATINGS, {}, {"sep": {"sep": ",i"}, "header": {"header": True}}),
    "load_bag_of_words": (LDAC, {}, {"format": {"format": "docword"}, "vocabulary": {}}),
    "load_vw": (
        VW,
        {},
        {
            "interactions": {"interactions": ["ab"]},
            "hash_features": {"hash_features": 64},
            "missing_label": {"missing_label": "drop"},
        },
    ),
    "load_parquet": (
        "",
        TABLE,
        {
            "label": {"label": 1, "numeric": [0]},
            "numeric": {"numeric": []},
            "categorical": {"categorical": [2, 3]},
            "hash_features": {"hash_features": 3},
            "label_above": {"label_above": 4.0},
            "missing_label": {"missing_label": "drop", "na_values": ["0"]},
            "na_values": {"na_values": ["x1;z"]},
        },
    ),
}
COMMON: dict[str, dict[str, Any]] = {"shuffle": {"shuffle": False}, "random_state": {"random_state": 8}}
ACTS = [(name, parameter) for name, (_, _, others) in LOADERS.items() for parameter in (*others, *COMMON)]


def write(name: str, folder: Path) -> Path:
    """Write the file of a loader."""
    path = folder / f"{name}.txt"
    if name == "load_parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [line.split(",") for line in CSV.splitlines()]
        columns = {f"c{k}": [row[k] for row in rows] for k in range(4)}
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text(LOADERS[name][0])
    return path


def loader(name: str) -> Callable[..., cirrus.Dataset]:
    """A loader by its name."""
    found: Callable[..., cirrus.Dataset] = getattr(cirrus, name)
    return found


def fingerprint(name: str, path: Path, url: Path, **arguments: Any) -> str:
    """What a call gives: the rows and what is known of them, or the error that refuses them."""
    try:
        manifest = loader(name)(path, url, **{"random_state": 7, **arguments}).manifest
    except cirrus.CirrusError as error:
        return str(error)
    return f"{manifest.fingerprint} {manifest.label_names}"


@pytest.mark.parametrize(("name", "parameter"), ACTS)
def test_a_parameter_acts(tmp_path: Path, name: str, parameter: str) -> None:
    """Another value of the parameter gives another dataset than the call that leaves it out."""
    _, arguments, others = LOADERS[name]
    path = write(name, tmp_path)
    one = {**arguments, "shuffle": parameter == "random_state"}
    other = {**one, **{**others, **COMMON}[parameter]}
    left_out = {key: value for key, value in other.items() if key != parameter or key in arguments}
    if parameter in arguments:
        left_out[parameter] = arguments[parameter]
    if parameter == "format":
        path.write_text(DOCWORD)
    if parameter == "vocabulary":
        words = tmp_path / "words"
        words.write_text("".join(f"w{i}\n" for i in range(50)))
        other["vocabulary"] = words
    if name == "load_vw" and parameter == "missing_label":
        path.write_text(VW + "|a x\n")
    assert fingerprint(name, path, tmp_path / "a", **other) != fingerprint(
        name, path, tmp_path / "b", **left_out
    )


@pytest.mark.parametrize("name", LOADERS)
def test_the_table_has_every_parameter(name: str) -> None:
    """No parameter of a loader is left out of these tests."""
    tested = {"path", "url", "n_processes", "backend", "progress", *COMMON, *LOADERS[name][2]}
    assert set(inspect.signature(loader(name)).parameters) == tested


@pytest.mark.parametrize("name", LOADERS)
def test_progress_and_processes_act(tmp_path: Path, name: str) -> None:
    """The progress function is called with rising numbers; as many processes parse as are asked for."""
    path = write(name, tmp_path)
    seen: list[LoadProgress] = []
    processes: list[int] = []

    def watch(progress: LoadProgress) -> None:
        seen.append(progress)
        processes.append(len(psutil.Process().children()))

    before = len(psutil.Process().children())
    dataset = loader(name)(path, tmp_path / "d", **LOADERS[name][1], n_processes=2, progress=watch)
    assert processes[0] == before + 2
    assert seen[-1].rows == dataset.n_rows == ROWS
    assert seen[-1].bytes_done == seen[-1].bytes_total == path.stat().st_size
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert not dataset.manifest.has_weights
    assert np.isfinite(dataset.to_csr()[0].data).all()


@pytest.mark.parametrize("name", LOADERS)
def test_the_backend_acts(tmp_path: Path, name: str) -> None:
    """Its workers parse and store; an unknown one is refused."""
    path = write(name, tmp_path)
    backend = FunctionsBackend(Functions())
    dataset = loader(name)(path, tmp_path / "d", **LOADERS[name][1], backend=backend)
    assert dataset.n_rows == ROWS
    assert {"scatter", "store_bucket"} <= {event["call"] for event in backend.functions.events}
    with pytest.raises(cirrus.ConfigError, match="backend"):
        loader(name)(path, tmp_path / "d", **LOADERS[name][1], backend="clouds")


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_progress_may_be_a_switch(tmp_path: Path, name: str) -> None:
    """True shows a live line, as it does everywhere else; False nothing; what is no function is refused."""
    path = write(name, tmp_path)
    for progress in (True, False):
        assert loader(name)(path, tmp_path / "d", **LOADERS[name][1], progress=progress).n_rows > 0
    with pytest.raises(cirrus.ConfigError, match="progress"):
        loader(name)(path, tmp_path / "d", **LOADERS[name][1], progress=5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("load_svmlight", {"n_processes": 1.5}),
        ("load_svmlight", {"random_state": 1.5}),
        ("load_svmlight", {"n_features": "9"}),
        ("load_csv", {"na_values": "NA"}),
        ("load_csv", {"na_values": [-999]}),
        ("load_csv", {"label": 0.0}),
        ("load_csv", {"numeric": 1}),
        ("load_csv", {"categorical": [2.0]}),
        ("load_csv", {"hash_features": 2.5}),
        ("load_csv", {"hash_features": "1024"}),
        ("load_csv", {"sep": 9}),
        ("load_parquet", {"hash_features": True}),
        ("load_parquet", {"label": 1.5}),
        ("load_ratings", {"sep": 9}),
        ("load_vw", {"hash_features": 2.5}),
    ],
)
def test_values_of_another_kind_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """A value that a parameter cannot take is one error that names the parameter."""
    path = write(name, tmp_path)
    with pytest.raises(cirrus.ConfigError, match=next(iter(options))):
        loader(name)(path, tmp_path / "d", **LOADERS[name][1] | options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "load_svmlight",
            {"n_features": np.int64(50), "random_state": np.int32(3), "n_processes": np.int8(1)},
        ),
        ("load_csv", {"label": np.int64(0), "numeric": np.arange(1, 2), "hash_features": np.uint32(64)}),
        ("load_csv", {"shuffle": np.True_, "categorical": np.array([2])}),
        ("load_vw", {"hash_features": np.int64(64)}),
    ],
)
def test_numbers_of_numpy_are_numbers(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """A whole number is one whatever its type is, also for the processes of a load and what it keeps."""
    path = write(name, tmp_path)
    arguments = LOADERS[name][1] | options
    plain = {key: np.asarray(value).tolist() for key, value in arguments.items()}
    for n_processes in (1, 2):
        made = loader(name)(
            path, tmp_path / "a", **{"random_state": 1, "n_processes": n_processes, **arguments}
        )
        same = loader(name)(path, tmp_path / "b", **{"random_state": 1, **plain})
        assert made.manifest.fingerprint == same.manifest.fingerprint


@pytest.mark.parametrize("name", ["load_csv", "load_parquet"])
def test_rows_may_have_no_label(tmp_path: Path, name: str) -> None:
    """With ``label=None`` every column can be a feature, for models that need no labels."""
    path = write(name, tmp_path)
    dataset = loader(name)(path, tmp_path / "d", label=None, numeric=[0, 1], shuffle=False, hash_features=8)
    X, y, _ = dataset.to_csr()
    assert y.tolist() == [0] * ROWS
    assert X[:, [0, 1]].toarray().tolist() == [[i, i % 5] for i in range(ROWS)]
