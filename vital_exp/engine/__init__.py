"""The optimisation: from a configuration to pictures."""

from vital_exp.engine.gradient import objective_and_gradient
from vital_exp.setup.schedule import learning_rate

__all__ = ["learning_rate", "objective_and_gradient"]
