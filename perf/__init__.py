"""Measurements of numbasep next to its peers: ``python -m perf.run --help``."""
