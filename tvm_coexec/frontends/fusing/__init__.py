"""Elementary operations become layers, and take in what follows them."""
