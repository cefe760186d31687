"""The compiled kernels: arrays in, arrays out; no checks, no errors, no allocation of results."""
