"""Networks: loading them, their layers, and reading activations by module name."""
