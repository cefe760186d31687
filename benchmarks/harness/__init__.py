"""Speed of nbbn beside its peers: more of them than `nbbn bench` has, more operations, types and layouts.

The processes and the clock are those of `nbbn._bench`. ``pytest benchmarks/`` and ``python -m benchmarks.compare`` are
faces of this.
"""
