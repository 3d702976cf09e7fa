"""Run folders: what writes them, what reads them, and what a recorded run was made with."""
