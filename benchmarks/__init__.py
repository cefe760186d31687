"""Speed of nbbn beside its peers: one registry of implementations, one list of shapes, one engine.

``pytest benchmarks/`` and ``python -m benchmarks.compare`` are two faces of `benchmarks.race`.
"""
