"""Population statistics: running statistics of a whole data set, in place of a moving average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nbbn.layer.batch_norm import BatchNorm


@contextlib.contextmanager
def calibrate(*layers: BatchNorm) -> Iterator[None]:
    r"""Give layers the exact statistics of all the data that they see inside the ``with`` block.

    Inside it, training forwards normalize as usual; they leave running statistics and counter unchanged, and collect
    moments instead. On a clean exit each layer that saw data gets the statistics of all its batches together,

    .. math:: \mathrm{running\_mean} = \frac1n \sum_i x_i, \qquad \mathrm{running\_var} =
              \frac{1}{n - \mathrm{running\_correction}} \sum_i (x_i - \mathrm{running\_mean})^2 ,

    and ``num_batches_tracked`` is the number of these batches. A moving average forgets the first batches, and the
    cumulative one (``momentum=None``) gives a batch of 4 the weight of one of 100, and misses how their means differ.

    Parameters
    ----------
    *layers : BatchNorm
        One or more, with running statistics. Later ones see inputs normalized with batch statistics, as in training.

    Returns
    -------
    context manager

    Raises
    ------
    RuntimeError
        If a layer is not built yet.
    TypeError
        If an argument is not a `BatchNorm`.
    ValueError
        If no layer is given, or a layer has no running statistics or is being calibrated already.

    Notes
    -----
    Moments are merged in pairs of float64, so that any grouping into batches agrees with the whole to a few
    units in the last place before they are rounded to the layer's dtype. Masked values do not count. On an
    exception inside the block nothing changes; nor does a layer that saw no data.

    References
    ----------
    S. Ioffe, C. Szegedy, ICML 2015, as in `nbbn.normalize`: algorithm 2 (population statistics); Y. Wu, J. Johnson,
    "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> bn = nbbn.BatchNorm(1, running_correction=0)
    >>> with nbbn.calibrate(bn):
    ...     for batch in ([2, 0, 2, 4], [6, 6]):
    ...         y = bn(np.array(batch, dtype=np.float32).reshape(-1, 1))
    >>> bn.running_mean, bn.running_var
    (array([3.3333333], dtype=float32), array([4.888889], dtype=float32))
    >>> np.mean([2, 0, 2, 4, 6, 6]).round(6), np.var([2, 0, 2, 4, 6, 6]).round(6)
    (np.float64(3.333333), np.float64(4.888889))
    """
    if not layers:
        raise ValueError("layers: expected at least one BatchNorm, got none")
    for layer in layers:
        if not isinstance(layer, BatchNorm):
            raise TypeError(f"layers: expected BatchNorm, got {type(layer).__name__}")
        if not layer.track_running_stats:
            raise ValueError(f"layers: expected layers with running statistics, got {layer!r}")
    with contextlib.ExitStack() as stack:
        for layer in {id(layer): layer for layer in layers}.values():
            stack.enter_context(layer._collecting())
        yield
