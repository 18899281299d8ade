"""A model as layers that are joined by named tensors, and the passes over it."""

from .graph import Graph, Image, Node, State, Tensor, check_extents

__all__ = ["Graph", "Image", "Node", "State", "Tensor", "check_extents"]
