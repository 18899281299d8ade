"""Whether a machine with neighbours is steady: most of it exists for CPU devices that play the GPU."""
