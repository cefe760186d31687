"""BatchNorm, and what is made of it."""

from nbbn.layer.batch_norm import BatchNorm
from nbbn.layer.calibration import calibrate
from nbbn.layer.folding import fold_conv, fold_linear
from nbbn.layer.frozen import FrozenBatchNorm

__all__ = ["BatchNorm", "FrozenBatchNorm", "calibrate", "fold_conv", "fold_linear"]
