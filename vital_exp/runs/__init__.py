"""Write, read and score run folders, and rebuild the objects of a recorded run."""
