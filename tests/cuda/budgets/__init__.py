"""Lists of kernels and their limits, one module a subject; see ``tests.cuda.compiled``."""
