"""``--set NAME=VALUE``: parameters of estimators that have no option of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from cirrus.errors import ConfigError, nearest

_WORDS: dict[str, Any] = {"none": None, "true": True, "false": False}


def pair(text: str, option: str = "grid") -> tuple[str, str]:
    """Return name and values of ``NAME=VALUES``.

    Args:
        text: What was typed.
        option: The option that it was given to.

    Raises:
        ConfigError: It is not of this form.
    """
    name, separator, values = text.partition("=")
    if not separator or not name.strip() or not values:
        example = "NAME=VALUE, such as l1=0.5" if option == "set" else "NAME=VALUES, such as l1=0,1"
        raise ConfigError(option, f"{text!r} is not of the form {example}")
    return name.strip().replace("-", "_"), values


def value_of(text: str) -> Any:
    """Return what a word of the command line stands for: a number, none, true, false, or itself."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def tol_of(text: str) -> float | None:
    """Return what ``--tol`` was given.

    Raises:
        ConfigError: It is neither a number nor none.
    """
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError("tol", f"must be a number or none, got {text!r}") from error


def fixed_parameters(
    texts: Sequence[str], kind: Callable[..., Any], model_type: str, taken: Collection[str]
) -> dict[str, Any]:
    """Return what ``--set`` was given, by the names of parameters.

    Args:
        texts: ``NAME=VALUE`` each; ``optimizer_params`` is set a part at a time: ``optimizer_params.beta=1``.
        kind: Makes the estimator.
        model_type: What to call that.
        taken: Parameters that are set in other ways.

    Raises:
        ConfigError: There is no such parameter, or it is set in another way.
    """
    known = kind().get_params().keys()
    fixed: dict[str, Any] = {}
    for name, text in (pair(text, "set") for text in texts):
        whole, _, part = name.partition(".")
        if whole in taken:
            if whole == "progress":
                raise ConfigError("set", f"{whole!r} is decided by the command: leave it out")
            # The value as Python has it: the command line's words make an option of that.
            raise ConfigError("set", f"{whole!r} has an option of its own: {whole}={value_of(text)}")
        if whole not in known:
            near = nearest(whole, known)
            hint = "" if near is None else f": did you mean {near!r}?"
            raise ConfigError("set", f"--model-type {model_type} has no parameter {whole!r}{hint}")
        if part:
            fixed.setdefault(whole, {})[part] = value_of(text)
        else:
            fixed[whole] = value_of(text)
    return fixed
