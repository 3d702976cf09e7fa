"""Pages, tables and plots of runs and sweeps, and their tables in Weights & Biases."""
