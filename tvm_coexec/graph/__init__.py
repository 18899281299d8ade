"""A model as layers that are joined by named tensors, and the passes over it."""

from .graph import Graph, Image, Node, Tensor

__all__ = ["Graph", "Image", "Node", "Tensor"]
