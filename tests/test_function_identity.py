"""A function is the same as that of another process if, and only if, nothing that it does was changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cirrus
from cirrus.client_backend.function_identity import identify
from cirrus.client_backend.map_functions import pack_function
from cirrus.errors import ConfigError
from cirrus.worker_runtime.map_values import load_functions

SCRIPT = """
import enum, functools, re, sys
import numpy as np
import helper
from helper import deeper
from package.inner import scale
from cirrus.client_backend.function_identity import identify

WORDS = {"red", "green", "blue", "yellow"}
PATTERN = re.compile("a+b")

class Colour(enum.Enum):
    RED = 1

class Base:
    factor = 2
    def apply(self, x):
        return self.factor * x

class Scaler(Base):
    def __init__(self, by):
        self.by = by
    def apply(self, x):
        return super().apply(x) * self.by

def recursive(n):
    return 1 if n < 1 else n * recursive(n - 1)

def make(limit):
    scaler = Scaler(np.arange(3.0))
    def fn(block, extra={"x", "y", "z"}):
        import late
        if block.labels[0] in {"one", "two", "three"}:
            return None
        found = [w for w in WORDS if PATTERN.match(w)]
        return late.f(helper.f(deeper(scale(scaler.apply(limit + recursive(3)))))), found, Colour.RED
    return fn

print(identify(functools.partial(make(5)), max).digest)
"""
HELPER = """
import threading
LOCK = threading.Lock()
STEP = 1
def f(x):
    return x + STEP
def deeper(x):
    return f(x) * 2
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A folder with a script that prints the identity of a function, and the modules that it uses."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "late.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("def scale(x):\n    return 3 * x\n")
    return tmp_path


def digest_of(folder: Path, seed: int) -> str:
    """Run the script in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cirrus.__file__).parents[1]),
        "PYTHONHASHSEED": str(seed),
        "PYTHONDONTWRITEBYTECODE": "1",  # files that change within one second are read anew
    }
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_the_same_code_is_the_same_in_every_process(script: Path) -> None:
    """Sets, classes of the script, locks in modules and the lines where things stand make no difference."""
    first = digest_of(script, 1)
    assert len(first) == 64
    text = (script / "script.py").read_text()
    (script / "script.py").write_text(
        "# A remark.\n\n" + text.replace("def make", "\n# Another.\n\ndef make")
    )
    assert digest_of(script, 2) == first


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("script.py", "limit + ", "limit - "),
        ("script.py", "make(5)", "make(6)"),
        ("script.py", "np.arange(3.0)", "np.arange(4.0)"),
        ("script.py", "factor = 2", "factor = 3"),
        ("script.py", "self.factor * x", "self.factor + x"),
        ("script.py", '"blue"', '"black"'),
        ("script.py", '"three"', '"four"'),
        ("script.py", '"z"', '"w"'),
        ("script.py", "n * recursive", "n + recursive"),
        ("script.py", "a+b", "a+c"),
        ("script.py", "RED = 1", "RED = 2"),
        ("script.py", ", max)", ", min)"),
        ("helper.py", "STEP = 1", "STEP = 2"),
        ("helper.py", "f(x) * 2", "f(x) * 3"),
        ("package/inner.py", "3 * x", "4 * x"),
        ("late.py", "return x", "return -x"),
    ],
)
def test_other_code_is_another_function(script: Path, file: str, old: str, new: str) -> None:
    """Whatever is changed that the function uses, near or far, it is another one."""
    first = digest_of(script, 1)
    path = script / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert digest_of(script, 1) != first


def test_what_cannot_be_compared_is_said() -> None:
    """There is no digest for what cannot be walked, and a reason."""
    lock = threading.Lock()
    identity = identify(lambda block: lock)
    assert identity.digest is None
    assert "lock" in identity.obstacle
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert identify(lambda block: nested).digest is None


def test_what_cannot_be_sent_is_refused_by_name() -> None:
    """The error says which parameter, and why."""
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"map_fn: cannot be sent.*lock"):
        pack_function(lambda block: lock, parameter="map_fn")
    with pytest.raises(ConfigError, match="fn: must be a function"):
        pack_function(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reduce_fn: must be a function"):
        pack_function(len, "sum")  # type: ignore[arg-type]


WORKER = """
import sys
from cirrus.worker_runtime.map_values import load_functions
fn, _ = load_functions(open(sys.argv[1], "rb").read())
print(fn(5))
"""


def test_modules_of_the_users_own_travel_with_the_function(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has none of them runs the function: named outside of it, or imported when it runs."""
    (script / "helper.py").write_text("STEP = 1\ndef f(x):\n    return x + STEP\n")
    (script / "uses.py").write_text(
        "import helper\nfrom package.inner import scale\n"
        "def fn(x):\n    from late import f\n    return f(scale(helper.f(x)))\n"
    )
    monkeypatch.syspath_prepend(str(script))
    import uses  # type: ignore[import-not-found]

    data = script / "function"
    data.write_bytes(pack_function(uses.fn).data)
    assert load_functions(data.read_bytes())[0](5) == 18
    run = subprocess.run(
        [sys.executable, "-P", "-c", WORKER, str(data)],
        env={**os.environ, "PYTHONPATH": str(Path(cirrus.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "18"
    for name in ("uses", "helper", "late", "package", "package.inner"):
        sys.modules.pop(name, None)
