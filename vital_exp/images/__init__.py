"""Image parameterisations, random transforms of pictures, and the files that pictures are saved in."""
