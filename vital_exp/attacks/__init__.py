"""Attacks on feature visualisation: networks whose pictures lie while their natural images are treated as before."""
