"""What is optimised: image parameterisations, the random transforms of pictures, and what is saved of them."""
