"""Which models there are, by the name that a run's config gives.

Other packages add theirs as entry points of the group ``cirrus.models``, under the model's name; only what is
installed can be named, so that no file can make a worker run anything else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from cirrus.config import ModelConfig
from cirrus.errors import ConfigError
from cirrus.models.base import Model

ENTRY_POINTS = "cirrus.models"

_BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "logistic": "cirrus.models.logistic:LogisticModel",
        "softmax": "cirrus.models.softmax:SoftmaxModel",
        "svm": "cirrus.models.svm:SvmModel",
        "factorization_machine": "cirrus.models.factorization_machine:FactorizationMachineModel",
        "matrix_factorization": "cirrus.models.matrix_factorization:MatrixFactorizationModel",
        "kmeans": "cirrus.models.kmeans:KMeansModel",
        "lda": "cirrus.models.lda:LdaModel",
        "linear": "cirrus.models.linear_regression:LinearRegressionModel",
    }
)


def model_class(name: str) -> type[Model]:
    """Return the class of a model family.

    Raises:
        ConfigError: There is none of that name, or the package that has it cannot be imported.
    """
    home = _BUILT_IN.get(name)
    if home is not None:
        module, _, attribute = home.partition(":")
        return cast("type[Model]", getattr(importlib.import_module(module), attribute))
    # Imported here: a worker of a built-in model does not need it.
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return cast("type[Model]", entry.load())
        except (ImportError, AttributeError) as error:
            raise ConfigError("model", f"{name!r} of {entry.value} cannot be imported: {error}") from error
    known = ", ".join(repr(known) for known in _BUILT_IN)
    raise ConfigError("model", f"unknown model {name!r}; this version has {known}")


def create_model(config: ModelConfig) -> Model:
    """Return the model that a run's config names.

    Raises:
        ConfigError: There is no model of that name, or its parameters are wrong.
    """
    return model_class(config.name).from_params(config.params)
