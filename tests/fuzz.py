"""Fuzzes everything that reads bytes of others: ``python tests/fuzz.py --seconds 600``.

Without ``--engine atheris`` inputs are made by chance of valid ones; with it, coverage tells which are worth
going on from (``pip install atheris``, where there is one for this Python, as ``make fuzz`` does). What is
found goes to ``tests/corpus/TARGET/``, and is tried again by ``tests/test_fuzz.py`` from then on.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import inspect
import logging
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fuzz_targets import CORPUS, ShardTarget, Target, attempt, mutated, shard_seeds, targets

#: No input may take longer ...
LONGEST_SECONDS = 10.0
#: ... or more memory than this beyond what the process has when fuzzing begins.
MEMORY_BYTES = 2 * 2**30
ROUND_SECONDS = 5.0


def keep(name: str, data: bytes) -> str:
    """Write an input that broke something into the corpus; return where it is."""
    folder = CORPUS / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return str(path)


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"an input took more than {LONGEST_SECONDS} seconds")


def limited(run: Callable[[bytes], object], data: bytes) -> str:
    """Run a target on an input, for no longer than it may take."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        return attempt(run, data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz_for(
    name: str, target: Target, seconds: float, rng: random.Random
) -> tuple[collections.Counter[str], int]:
    """Fuzz one target so long; return what came of inputs, and how many broke something."""
    outcomes: collections.Counter[str] = collections.Counter()
    n_broken = 0
    pool = list(target.seeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end and n_broken < 5:
        data = mutated(rng.choice(pool), rng, target.seeds, is_json=target.is_json)
        try:
            outcome = limited(target.run, data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            n_broken += 1
            traceback.print_exc()
            print(f"{name}: {type(error).__name__}: {error}: kept as {keep(name, data)}", flush=True)
            continue
        outcomes[outcome] += 1
        if outcome == "ok" and len(pool) < 500:
            pool.append(data)
    return outcomes, n_broken


def fuzz_by_chance(chosen: dict[str, Target], seconds: float, seed: int) -> int:
    """Fuzz targets in turns; return how many inputs broke something."""
    rng = random.Random(seed)
    totals: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in chosen}
    n_broken = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for name, target in chosen.items():
            share = max(0.05, min(ROUND_SECONDS, left / len(chosen)))
            outcomes, broken = fuzz_for(name, target, share, rng)
            totals[name] += outcomes
            n_broken += broken
    for name, outcomes in totals.items():
        said = ", ".join(f"{what} {count:,}" for what, count in outcomes.most_common())
        print(f"{name:16} {outcomes.total():>10,} inputs: {said}")
    total = sum(outcomes.total() for outcomes in totals.values())
    print(f"{total:,} inputs, {n_broken} broke something")
    return n_broken


def own_functions() -> Iterator[types.FunctionType]:
    """Yield the functions and methods of Cirrus that have been imported."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "cirrus":
            continue
        things = list(vars(module).values())
        things += [member for thing in things if inspect.isclass(thing) for member in vars(thing).values()]
        for thing in things:
            function = inspect.unwrap(getattr(thing, "__func__", thing))
            if isinstance(function, types.FunctionType) and function.__module__.startswith("cirrus"):
                yield function


def fuzz_by_coverage(name: str, target: Target, seconds: float) -> int:
    """Fuzz one target with atheris (libFuzzer); it ends the process when something breaks."""
    import atheris

    def one(data: bytes) -> None:
        attempt(target.run, data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, rng, target.seeds, is_json=target.is_json)[:max_size]

    folder = CORPUS / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    work = CORPUS.parent.parent / "out" / "fuzz" / name.replace(" ", "-")
    work.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (work / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    arguments = [sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=65536", "-rss_limit_mb=3000"]
    arguments += [f"-artifact_prefix={folder}/", "-timeout=10", str(work)]
    for function in own_functions():
        atheris.instrument_func(function)
    atheris.Setup(arguments, one, custom_mutator=change)
    atheris.Fuzz()
    return 0


def fuzz_each_by_coverage(names: Sequence[str], seconds: float) -> int:
    """Fuzz several targets with atheris, each in a process of its own; return how many broke."""
    broken = []
    for name in names:
        share = str(max(1.0, seconds / len(names)))
        print(f"== {name}", flush=True)
        command = [sys.executable, __file__, "--engine", "atheris", "--target", name, "--seconds", share]
        if subprocess.run(command, check=False).returncode != 0:
            broken.append(name)
    print(f"{len(names)} targets followed by coverage, {len(broken)} broke: {', '.join(broken) or 'none'}")
    return len(broken)


def main() -> int:
    """Fuzz; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long in all (%(default)s)")
    parser.add_argument("--target", action="append", help="one of the targets; may be given several times")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of chance (the time)")
    parser.add_argument("--engine", choices=("chance", "atheris"), default="chance")
    options = parser.parse_args()
    # What is told of a refused input would be all that one sees.
    logging.getLogger("cirrus").addHandler(logging.NullHandler())
    known = dict(targets())
    if options.engine == "atheris" and len(options.target or known) > 1:
        return 1 if fuzz_each_by_coverage(options.target or list(known), options.seconds) else 0
    shard = ShardTarget()
    known["shard"] = Target(shard, shard_seeds())
    chosen = {name: known[name] for name in (options.target or known)}
    print(f"seed {options.seed}; {len(chosen)} targets: {', '.join(chosen)}", flush=True)
    if options.engine == "atheris":
        (name, target) = next(iter(chosen.items()))
        return fuzz_by_coverage(name, target, options.seconds)
    signal.signal(signal.SIGALRM, _out_of_time)  # libFuzzer has its own
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    try:
        return 1 if fuzz_by_chance(chosen, options.seconds, options.seed) else 0
    finally:
        shard.close()


if __name__ == "__main__":
    sys.exit(main())
