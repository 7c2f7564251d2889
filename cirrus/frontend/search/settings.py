"""What a search is asked to keep to, checked before anything is started."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cirrus.config import whole_number
from cirrus.errors import ConfigError, nearest
from cirrus.frontend.base import Estimator
from cirrus.frontend.planning import check_params
from cirrus.frontend.search.scorers import is_several, metric_names

#: Limits of a search, which may be others when it goes on.
CHANGEABLE = ("max_concurrent", "max_workers", "max_seconds", "max_cost")
#: Parameters of the estimator that the search sets itself, for each trial.
_OWN_PARAMS = ("backend", "progress", "resume_from", "checkpoint_url")
_SEARCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_estimator(estimator: object) -> None:
    """Check what is searched over.

    Raises:
        ConfigError: It is no estimator of Cirrus', or one whose trials would share what each needs alone.
    """
    if not isinstance(estimator, Estimator):
        raise ConfigError("estimator", f"must be one of cirrus' estimators, got {estimator!r}")
    params = estimator.get_params(deep=False)
    for name in ("resume_from", "checkpoint_url"):
        if params.get(name) is not None:
            raise ConfigError(name, "must be None in a search: its trials would share it")


def check_limits(limits: Mapping[str, Any], search_id: object) -> None:
    """Check what a search must not go beyond, and its name.

    Args:
        limits: Those of :data:`CHANGEABLE`; but for ``max_concurrent``, None: there is none.
        search_id: The name; None: there is none yet.

    Raises:
        ConfigError: One of them cannot be; it is named.
    """
    whole_number(limits["max_concurrent"], "max_concurrent")
    if limits["max_workers"] is not None:
        whole_number(limits["max_workers"], "max_workers")
    for name in ("max_seconds", "max_cost"):
        value = limits[name]
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ConfigError(name, f"must be a positive number or None, got {value!r}")
    if search_id is not None and not _SEARCH_ID.fullmatch(str(search_id)):
        raise ConfigError("search_id", f"must be letters, figures, '.', '_' and '-' only, got {search_id!r}")


def check_refit(refit: object, scoring: object) -> None:
    """Check whether there shall be a best estimator.

    Args:
        refit: True, False, or as for scikit-learn the name of what trials are ranked by, or a function of
            the results that returns the best one's index.
        scoring: What they are ranked by, or several metrics of which ``refit`` names the one.

    Raises:
        ConfigError: It would rank trials by something else.
    """
    if callable(refit):
        return
    if is_several(scoring):
        is_off = isinstance(refit, (bool, np.bool_)) and not refit
        if is_off or (isinstance(refit, str) and refit in metric_names(scoring)):
            return
        raise ConfigError(
            "refit",
            "for multi-metric scoring, must be the name of the metric that ranks trials and that best_* "
            f"are of, a function of the results, or False if this is not needed; got {refit!r}",
        )
    if isinstance(refit, (bool, np.bool_)) or (isinstance(refit, str) and refit == scoring):
        return
    raise ConfigError(
        "refit",
        f"must be True, False, the name that scoring has, or a function of the results; got {refit!r}",
    )


def check_searched(names: Iterable[str], estimator: Estimator) -> None:
    """Check the parameters that are searched over, and the values of the others.

    Raises:
        ConfigError: One cannot be; it is named.
    """
    params = estimator.get_params(deep=False)
    for name in sorted(names):
        if name not in params:
            known = sorted(set(params) - set(_OWN_PARAMS))
            near = nearest(name, known)
            hint = f"it has {', '.join(map(repr, known))}" if near is None else f"did you mean {near!r}?"
            raise ConfigError(name, f"is no parameter of {type(estimator).__name__}: {hint}")
        if name in _OWN_PARAMS:
            raise ConfigError(name, "cannot be searched over: the search sets it itself")
    check_params(params)
