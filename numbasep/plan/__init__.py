"""Plans: all validation and every decision, from shapes and dtypes alone; never data, never CUDA."""
