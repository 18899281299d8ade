"""The format of a module: what stands in its file, written and read."""
