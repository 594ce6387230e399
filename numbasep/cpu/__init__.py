"""The CPU backend: Numba kernels of explicit vectors, on a pool of threads."""
