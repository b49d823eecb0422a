"""A package, so that the platform that its tests share ends with them."""
