"""The cases that the pages show: those of ``docs/performance.md``, and sets of others.

``python -m benchmarks.compare --record`` runs the first, ``--set NAME`` one of `SETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.harness.cases import (
    DTYPES,
    FUSED,
    LAYOUTS,
    OPERATIONS,
    STANDARDIZER,
    STATISTICS,
    STEP,
    Case,
    list_cases,
)
from benchmarks.harness.shapes import FEATURES, ODD, Shape

THREADS = (1, 2)


@dataclass(frozen=True)
class Preset:
    """Cases to record, rounds at most, the seconds after which a race ends, and how long it takes."""

    cases: Callable[[Iterable[int]], tuple[Case, ...]]
    rounds: int
    seconds: float
    minutes: int


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
_TABLES: tuple[Shape, ...] = ((32, 64), (128, 64), (4096, 128))
_CHANNELS_LAST: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (8, 2048, 7, 7))
_OTHER_TYPES: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (1024, 1024))
_STEPS: tuple[Shape, ...] = ((32, 64), (128, 64), (128, 256))
_IN_PLACE: tuple[Shape, ...] = ((32, 64, 56, 56), (1024, 1024))

# With new results, as most people call; and with memory to write to, as the yardsticks have it.
_VARIANTS = ("fresh", "out")


def recorded_cases(threads: Iterable[int] = THREADS) -> tuple[Case, ...]:
    """Return all cases, the thread count slowest."""
    cases: list[Case] = []
    for count in threads:
        cases += list_cases(
            operations=OPERATIONS,
            shapes=(*_IMAGES, *_TABLES, *FEATURES, *ODD),
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
        cases += list_cases(operations=[STEP], shapes=_STEPS, threads=[count])
        cases += list_cases(operations=["inference"], shapes=_IN_PLACE, threads=[count], variants=["inplace"])
    return tuple(dict.fromkeys(cases))


# Six of ResNet-50's images, each alone and 32 at a time: from inside a core's cache to past all of them.
_FUSED_IMAGES: tuple[Shape, ...] = tuple(
    (batch, *image)
    for batch in (1, 32)
    for image in (
        (64, 56, 56),
        (256, 56, 56),
        (128, 28, 28),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
    )
)
_FUSED_TABLES: tuple[Shape, ...] = ((128, 256), (1024, 1024), (65536, 256))
_FUSED_FEW: tuple[Shape, ...] = (
    (1, 256, 56, 56),
    (32, 64, 56, 56),
    (32, 1024, 14, 14),
    (1024, 1024),
)
_PHOTOS: tuple[Shape, ...] = ((1, 3, 224, 224), (32, 3, 224, 224))


def fused_cases(threads: Iterable[int] = THREADS) -> tuple[Case, ...]:
    """Return the cases of fused steps, half types and bytes, the thread count slowest.

    With memory to write to, as the yardsticks have it.
    """
    usual, few = FUSED[:2], FUSED[2:]
    cases: list[Case] = []
    for count in threads:
        cases += list_cases(
            operations=usual,
            shapes=(*_FUSED_IMAGES, *_FUSED_TABLES),
            threads=[count],
            variants=["out"],
        )
        cases += list_cases(operations=few, shapes=_FUSED_FEW, threads=[count], variants=["out"])
        cases += list_cases(
            operations=["inference", "inference+residual+relu"],
            shapes=_FUSED_FEW,
            threads=[count],
            dtypes=["float32", "bfloat16", "float16"],
            variants=["out"],
        )
        cases += list_cases(
            operations=["inference"],
            shapes=_PHOTOS,
            threads=[count],
            dtypes=["float32", "uint8"],
            layouts=LAYOUTS,
            variants=["out"],
        )
    return tuple(dict.fromkeys(cases))


_DATA_SETS: tuple[Shape, ...] = ((1, 64), (32, 64), *FEATURES[1:])


def standardizer_cases(threads: Iterable[int] = THREADS) -> tuple[Case, ...]:
    """Return the cases of data sets, the thread count slowest."""
    return list_cases(operations=STANDARDIZER, shapes=_DATA_SETS, threads=threads, dtypes=DTYPES)


_MASKED: dict[str, tuple[Shape, ...]] = {
    "channels-last": ((32, 256, 128), (64, 512, 512)),
    "channels-first": (
        (32, 64, 56, 56),
        (32, 64, 112, 112),
        (32, 256, 14, 14),
        (128, 256),
        (65536, 256),
        (1_000_000, 32),
    ),
}
# Calibration costs what training does: a few shapes tell.
_CALIBRATED = {
    "channels-last": ((32, 256, 128),),
    "channels-first": ((32, 64, 56, 56), (32, 256, 14, 14), (128, 256), (65536, 256)),
}


def statistics_cases(threads: Iterable[int] = THREADS) -> tuple[Case, ...]:
    """Return the cases of masks, weights and collected statistics, the thread count slowest."""
    cases: list[Case] = []
    for count in threads:
        for operation in STATISTICS:
            shapes = _CALIBRATED if operation == "calibrate" else _MASKED
            for layout, chosen in shapes.items():
                cases += list_cases(operations=[operation], shapes=chosen, threads=[count], layouts=[layout])
        cases += list_cases(
            operations=["moments+weights"],
            shapes=[(128, 256), (65536, 256)],
            threads=[count],
            dtypes=["float64"],
        )
    return tuple(cases)


PAGE = Preset(recorded_cases, rounds=15, seconds=0.25, minutes=20)
SETS = {
    "fused": Preset(fused_cases, rounds=9, seconds=0.12, minutes=5),
    "standardizer": Preset(standardizer_cases, rounds=15, seconds=0.25, minutes=6),
    "statistics": Preset(statistics_cases, rounds=9, seconds=0.12, minutes=4),
}
