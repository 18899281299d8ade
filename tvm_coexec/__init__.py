"""Run one neural network on the CPU and the GPU of one device at the same time."""
