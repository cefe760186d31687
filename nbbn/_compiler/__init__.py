"""How kernels are compiled, and kept on disk; nothing outside this folder names numba, but for ``prange``."""
