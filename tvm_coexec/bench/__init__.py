"""What exists for CPU devices that play the GPU: their threads, and whether a machine with neighbours is steady."""
