"""Attacks on feature visualisation: networks whose pictures mislead while natural images are classified as before."""
