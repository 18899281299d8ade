"""Emulated phones: what they are made of, the kinds there are, and the network that they share."""
