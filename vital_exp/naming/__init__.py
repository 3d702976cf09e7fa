"""Names of mined units: the words CLIP finds in what drives them, the labels they tell best."""
