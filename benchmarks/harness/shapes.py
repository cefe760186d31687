"""The shapes that are measured, as plain data; those of ``nbbn bench`` are in `nbbn.cli.bench`.

To measure another family of shapes, add a tuple and name it in `SHAPE_SETS`.
"""

from __future__ import annotations

from nbbn._bench.problem import Shape, format_shape
from nbbn.cli.bench import BATCH, FEATURES, QUICK, QUICK_FUSED, RESNET50_IMAGES

__all__ = [
    "FEATURES",
    "QUICK_FUSED",
    "RESNET50_IMAGES",
    "Shape",
    "expand_shapes",
    "format_shape",
    "parse_shape",
]

ODD: tuple[Shape, ...] = (
    (8, 1, 224, 224),
    (8, 3, 512, 512),
    (8, 100_000),
    (4, 32, 16, 64, 64),
)
"""One channel, three with large images, far more channels than samples, volumes."""

DEFAULT_BATCHES: tuple[int, ...] = (BATCH,)

IMAGE_SETS: dict[str, tuple[Shape, ...]] = {"resnet50": RESNET50_IMAGES}
"""Sets that take their first dimension from ``--batch``."""

SHAPE_SETS: dict[str, tuple[Shape, ...]] = {"features": FEATURES, "odd": ODD, "quick": QUICK}
"""Sets of whole shapes."""

DEFAULT_SETS: tuple[str, ...] = ("resnet50", "features")


def parse_shape(text: str) -> Shape:
    """Return ``32x64x56x56`` as a tuple; the channels are its second entry.

    Raises
    ------
    ValueError
        If ``text`` is not two or more positive integers joined by ``x``.
    """
    parts = text.lower().split("x")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"a shape is written like 32x64x56x56, not {text!r}")
    shape = tuple(int(part) for part in parts)
    if min(shape) < 1:
        raise ValueError(f"every size in a shape is at least 1, not {text!r}")
    return shape


def expand_shapes(names: tuple[str, ...], batches: tuple[int, ...]) -> tuple[Shape, ...]:
    """Return the distinct shapes that ``names`` (names of sets, or shapes) stand for, in order.

    Raises
    ------
    ValueError
        If a name is neither a set nor a shape.
    """
    shapes: list[Shape] = []
    for name in names:
        if name in IMAGE_SETS:
            shapes += [(batch, *image) for batch in batches for image in IMAGE_SETS[name]]
        elif name in SHAPE_SETS:
            shapes += SHAPE_SETS[name]
        else:
            try:
                shapes.append(parse_shape(name))
            except ValueError as error:
                known = ", ".join((*IMAGE_SETS, *SHAPE_SETS))
                raise ValueError(f"{error} (or name a set: {known})") from None
    return tuple(dict.fromkeys(shapes))
