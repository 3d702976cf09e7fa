"""Units of a network, and the ways people name them."""
