"""Plans: all validation, every decision, from shapes and dtypes alone; never data, never CUDA."""
