"""Topics of the Reuters articles: perplexity and time beside scikit-learn's LatentDirichletAllocation.

    python benchmarks/topics.py ../shared/data/reuters

Of 40 articles held out at random (seed 0), topics are inferred from a half of the words, and the other half
is scored. scikit-learn learns in batch and online; its better perplexity is what ours is compared with.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import LatentDirichletAllocation

import cirrus

Counts = npt.NDArray[np.int64]
DEFAULT_PATH = Path("../shared/data/reuters")
N_TOPICS = 20
N_HELD_OUT = 40


def main() -> None:
    """Print a line for each way of learning, the ratio, and some topics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=DEFAULT_PATH, help="folder of the articles")
    parser.add_argument("--passes", type=int, default=50, help="of scikit-learn's")
    options = parser.parse_args()
    if not (options.path / "reuters.ldac.gz").is_file():
        print(f"no {options.path}: the benchmark of topics is skipped")
        return
    counts, words = _articles(options.path)
    order = np.random.default_rng(0).permutation(len(counts))
    train = counts[order[N_HELD_OUT:]]
    seen, asked = _halves(counts[order[:N_HELD_OUT]])
    ours = cirrus.LatentDirichletAllocation(n_topics=N_TOPICS, epochs=30, backend="inline", random_state=0)
    found = _report("cirrus, 30 epochs", ours, train, seen, asked)
    best = min(
        _report(
            f"scikit-learn, {method}, {options.passes} passes",
            LatentDirichletAllocation(
                N_TOPICS, learning_method=method, max_iter=options.passes, random_state=0
            ),
            train,
            seen,
            asked,
        )
        for method in ("batch", "online")
    )
    print(f"perplexity is {found / best:.3f} of scikit-learn's best")
    for topic in ours.top_words(words, 8)[:5]:
        print("   ", " ".join(topic))


def _articles(folder: Path) -> tuple[Counts, list[str]]:
    """Return the counts of words, and what they are."""
    with tempfile.TemporaryDirectory() as name:
        path, words = Path(name) / "reuters.ldac", Path(name) / "reuters.tokens"
        for file in (path, words):
            file.write_bytes(gzip.decompress((folder / f"{file.name}.gz").read_bytes()))
        dataset = cirrus.load_bag_of_words(path, Path(name) / "data", vocabulary=words, shuffle=False)
        names = [str(word) for word in dataset.vocabulary("words").ids()]
        return dataset.to_csr()[0].toarray().astype(np.int64), names


def _halves(documents: Counts) -> tuple[Counts, Counts]:
    """Return the words of each document in two halves, at random."""
    rng = np.random.default_rng(0)
    first, second = np.zeros_like(documents), np.zeros_like(documents)
    for row, document in enumerate(documents):
        tokens = rng.permutation(np.repeat(np.arange(len(document)), document))
        half = len(tokens) // 2
        np.add.at(first[row], tokens[:half], 1)
        np.add.at(second[row], tokens[half:], 1)
    return first, second


def _report(name: str, model: Any, train: Counts, seen: Counts, asked: Counts) -> float:
    started_at = time.perf_counter()
    model.fit(train)
    seconds = time.perf_counter() - started_at
    topics = model.components_ / model.components_.sum(axis=1, keepdims=True)
    chances = model.transform(seen) @ topics
    perplexity = float(np.exp(-(asked * np.log(chances)).sum() / asked.sum()))
    print(f"{name:<36} perplexity {perplexity:7.1f}  {seconds:6.2f} s", flush=True)
    return perplexity


if __name__ == "__main__":
    main()
