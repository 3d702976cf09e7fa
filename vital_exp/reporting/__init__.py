"""What a person sees of a run: the closing table, the plan of a dry run, the gallery."""
