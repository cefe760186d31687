"""The shapes that are measured, as plain data; this file imports nothing.

To measure another family of shapes, add a tuple and name it in `SHAPE_SETS`.
"""

Shape = tuple[int, ...]

RESNET50_IMAGES: tuple[Shape, ...] = (
    (64, 112, 112),
    (64, 56, 56),
    (256, 56, 56),
    (128, 56, 56),
    (128, 28, 28),
    (512, 28, 28),
    (256, 28, 28),
    (256, 14, 14),
    (1024, 14, 14),
    (512, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
"""(channels, height, width) of every distinct batch normalization in ResNet-50, in order."""

FEATURES: tuple[Shape, ...] = (
    (1, 64),
    (32, 256),
    (128, 256),
    (1024, 1024),
    (65536, 256),
    (1_000_000, 32),
)
"""(samples, features): dense layers and tables, from the smallest call upwards."""

ODD: tuple[Shape, ...] = (
    (8, 1, 224, 224),
    (8, 3, 512, 512),
    (8, 100_000),
    (4, 32, 16, 64, 64),
)
"""One channel, three with large images, far more channels than samples, volumes."""

QUICK: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (32, 2048, 7, 7), (128, 256))
"""A sample of the others for ``--quick``: larger than a core's cache, inside it, 7x7, a table."""

QUICK_FUSED: tuple[Shape, ...] = ((32, 256, 14, 14), (128, 256))
"""Of these the ones that a fused operation is measured on, too: images and a table."""

DEFAULT_BATCHES: tuple[int, ...] = (32,)

IMAGE_SETS: dict[str, tuple[Shape, ...]] = {"resnet50": RESNET50_IMAGES}
"""Sets that take their first dimension from ``--batch``."""

SHAPE_SETS: dict[str, tuple[Shape, ...]] = {"features": FEATURES, "odd": ODD, "quick": QUICK}
"""Sets of whole shapes."""

DEFAULT_SETS: tuple[str, ...] = ("resnet50", "features")


def format_shape(shape: Shape) -> str:
    """Return ``(32, 64, 56, 56)`` as ``32x64x56x56``."""
    return "x".join(str(size) for size in shape)


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
