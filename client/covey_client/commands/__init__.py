"""The commands of `covey`, one module for each noun. Each has `add`, which declares them."""
