"""Standardizer, and the data sets that it takes: in memory, of dask, in files."""

from nbbn.standardizer.standardizer import Standardizer

__all__ = ["Standardizer"]
