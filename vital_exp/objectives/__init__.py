"""Objectives of the optimisation: alignment with references, activation maximisation, image priors."""

from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.priors import l2_norm, total_variation

__all__ = ["l2_norm", "sort_matching", "total_variation"]
