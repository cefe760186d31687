"""``nbbn bench``: how fast this machine is with nbbn, beside other libraries and its own limit.

Each library runs in a process of its own (`worker`), and is timed in turn with the others (`race`). More libraries,
types and layouts are measured by ``benchmarks/`` of a checkout, which is built on this.
"""
