"""Settings that must be in place before numba is imported."""

import os

# Tests compare one thread with up to four; numba fixes its maximum at import, to the number of cores it sees.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(4, os.cpu_count() or 1)))
