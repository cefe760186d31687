"""The cases of ``docs/performance.md``: what ``python -m benchmarks.compare --record`` runs."""

from __future__ import annotations

from collections.abc import Iterable

from nbbn._bench.cases import OPERATIONS, Case, list_cases
from nbbn._bench.shapes import FEATURES, ODD, Shape

THREADS = (1, 2)
ROUNDS, SECONDS = 15, 0.25
"""Rounds at most; a race ends after five and this time."""
MINUTES = 18

# Of the images of ResNet-50 one of each size; the largest at batch 32 would take a third of the time.
_IMAGES: tuple[Shape, ...] = (
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
    (8, 256, 56, 56),
    (8, 512, 28, 28),
    (8, 1024, 14, 14),
    (8, 2048, 7, 7),
    (1, 64, 112, 112),
    (1, 512, 28, 28),
    (1, 1024, 14, 14),
    (1, 2048, 7, 7),
)
_CHANNELS_LAST: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (8, 2048, 7, 7))
_OTHER_TYPES: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (1024, 1024))
_IN_PLACE: tuple[Shape, ...] = ((32, 64, 56, 56), (1024, 1024))

# With new results, as most people call; and with memory to write to, as the yardsticks have it.
_VARIANTS = ("fresh", "out")


def recorded_cases(threads: Iterable[int] = THREADS) -> tuple[Case, ...]:
    """Return all cases, the thread count slowest."""
    cases: list[Case] = []
    for count in threads:
        cases += list_cases(
            operations=OPERATIONS,
            shapes=(*_IMAGES, *FEATURES, *ODD),
            threads=[count],
            variants=_VARIANTS,
        )
        cases += list_cases(
            operations=OPERATIONS,
            shapes=_CHANNELS_LAST,
            threads=[count],
            layouts=["channels-last"],
            variants=["out"],
        )
        for dtype, params in (("float64", ""), ("float32", "float64")):
            cases += list_cases(
                operations=OPERATIONS,
                shapes=_OTHER_TYPES,
                threads=[count],
                dtypes=[dtype],
                params=[params],
                variants=["out"],
            )
        cases += list_cases(
            operations=["inference"], shapes=_IN_PLACE, threads=[count], variants=["inplace"]
        )
    return tuple(dict.fromkeys(cases))
