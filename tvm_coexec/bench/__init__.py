"""What exists for bench devices alone: CPU devices that play the GPU on a machine with neighbours."""
