"""Speed of nbbn beside its peers: one registry of implementations, one list of shapes, one engine.

``nbbn bench``, ``pytest benchmarks/`` and ``python -m benchmarks.compare`` are faces of `benchmarks.harness.race`.
"""
