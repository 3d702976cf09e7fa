"""Mining: which images, and which patches of them, drive the units of a network most and least."""
