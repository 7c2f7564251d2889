"""A quick start of numba, for processes that run our kernels and nothing else."""

from __future__ import annotations

import sys

#: What numba looks for before it runs anything: BLAS, which no kernel of ours needs.
_NOT_NEEDED = ("scipy", "scipy.linalg.cython_blas")


def hide_scipy() -> None:
    """Have numba start in two thirds of its time, by hiding from this process what it would import for that.

    Only for the main function of a process in which no user's code runs: scipy cannot be imported any more.
    """
    for name in _NOT_NEEDED:
        # None is how Python notes that there is no such module.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
