"""The engine of `nbbn._bench`, with the registry of this package, and outcomes of recorded runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nbbn._bench import race
from nbbn._bench.race import BASELINE, Outcome, Result

__all__ = ["BASELINE", "Kept", "Outcome", "Race", "Result"]


class Race(race.Race):
    """Races of all implementations."""

    registry: ClassVar[str] = "benchmarks.harness.implementations"


@dataclass
class Kept(Outcome):
    """What a condensed record keeps of the durations."""

    median: float = 0.0
    minimum: float = 0.0
