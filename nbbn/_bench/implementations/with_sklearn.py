"""scikit-learn: StandardScaler, for (N, C)."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np

from nbbn._bench.cases import Case
from nbbn._bench.implementations.base import (
    Implementation,
    OfScaler,
    Prepared,
    input_and_out,
    named_moments,
    named_y,
)
from nbbn._bench.problem import EPS, Problem


class ScikitLearn(OfScaler, Implementation):
    """A scaler without its checks for NaN and of its own parameters.

    It has no gamma and beta: they are folded into its mean and scale, as
    ``(x - mean) / std * gamma + beta = (x - (mean - beta * std / gamma)) / (std / gamma)``.
    """

    name = "sklearn"
    module = "sklearn"

    def load(self, threads: int) -> None:
        """Import the library, and turn checks off that cost a pass over the data."""
        super().load(threads)
        self.library.set_config(assume_finite=True, skip_parameter_validation=True)

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        declined = super().declines(case) or self.declines_variant(case, "fresh", "inplace")
        if declined is None and len(case.shape) != 2:
            return "StandardScaler takes (N, C) only"
        return declined

    def _scaler(self, **options: Any) -> Any:
        return importlib.import_module("sklearn.preprocessing").StandardScaler(**options)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``transform``; with ``copy=False`` in place."""
        p = problem
        scaler = self._scaler(copy=p.case.variant == "fresh")
        std = np.sqrt(p.running_var.astype(np.float64) + EPS)
        scaler.scale_ = std / p.gamma
        scaler.mean_ = p.running_mean - p.beta * scaler.scale_
        scaler.var_ = scaler.scale_**2
        scaler.n_features_in_, scaler.n_samples_seen_ = p.case.channels, 2
        x, _ = input_and_out(p)
        return Prepared(partial(scaler.transform, x), named_y)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``fit``, which starts anew."""
        call = partial(self._scaler().fit, problem.x)
        return Prepared(call, lambda scaler: named_moments(scaler.mean_, scaler.var_))

    def prepare_from_batches(self, problem: Problem) -> Prepared:
        """``fit`` of the first piece, which starts anew, then ``partial_fit``."""
        scaler = self._scaler()
        first, *others = problem.pieces

        def learn() -> None:
            scaler.fit(first)
            for piece in others:
                scaler.partial_fit(piece)

        return Prepared(learn, lambda _: named_moments(scaler.mean_, scaler.var_))

    def scaler(self, problem: Problem) -> Any:
        """A `StandardScaler`."""
        return self._scaler()
