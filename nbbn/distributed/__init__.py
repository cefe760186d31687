"""Several workers, large data: synchronized training, statistics of dask arrays.

Importing this imports none of the libraries: they are used where their objects are handed in.
"""

from nbbn.distributed.dask import dask_moments, dask_normalize
from nbbn.distributed.sync import SyncBatchNorm

__all__ = ["SyncBatchNorm", "dask_moments", "dask_normalize"]
