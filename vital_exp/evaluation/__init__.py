"""Evaluation: metrics of pictures, by the network that they were made for and by judges."""
