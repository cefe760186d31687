"""scikit-learn: StandardScaler, for (N, C)."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.cases import Case
from benchmarks.harness.implementations.base import (
    Implementation,
    OfScaler,
    Prepared,
    input_and_out,
    named_moments,
    named_y,
)
from benchmarks.harness.problem import Problem
from nbbn._bench import libraries


class ScikitLearn(OfScaler, Implementation, libraries.ScikitLearn):
    """`nbbn._bench.libraries.ScikitLearn`, also in place, and as an estimator."""

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        declined = Implementation.declines(self, case) or self.declines_variant(case, "fresh", "inplace")
        if declined is None and len(case.shape) != 2:
            return "StandardScaler takes (N, C) only"
        return declined

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``transform``; with ``copy=False`` in place."""
        p = problem
        scaler = self.folded(p, copy=p.case.variant == "fresh")
        x, _ = input_and_out(p)
        return Prepared(partial(scaler.transform, x), named_y)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``fit``, which starts anew."""
        call = partial(self.new_scaler().fit, problem.x)
        return Prepared(call, lambda scaler: named_moments(scaler.mean_, scaler.var_))

    def prepare_from_batches(self, problem: Problem) -> Prepared:
        """``fit`` of the first piece, which starts anew, then ``partial_fit``."""
        scaler = self.new_scaler()
        first, *others = problem.pieces

        def learn() -> None:
            scaler.fit(first)
            for piece in others:
                scaler.partial_fit(piece)

        return Prepared(learn, lambda _: named_moments(scaler.mean_, scaler.var_))

    def scaler(self, problem: Problem) -> Any:
        """A `StandardScaler`."""
        return self.new_scaler()
