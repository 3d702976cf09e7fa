"""Natural images of a target, and the statistics of their features."""
