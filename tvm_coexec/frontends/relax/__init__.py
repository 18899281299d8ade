"""Relax modules, which every format becomes, as lists of elementary operations."""
