"""Divide the layers of a network: splits, synchronisations, the search for the best plan of the whole."""
