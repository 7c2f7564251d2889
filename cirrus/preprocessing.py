"""Preprocessing of datasets, under scikit-learn's names: see :mod:`cirrus.frontend.preprocessing`."""

from cirrus.frontend.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler, load_preprocessing

__all__ = ["FeatureHasher", "MinMaxScaler", "StandardScaler", "load_preprocessing"]
