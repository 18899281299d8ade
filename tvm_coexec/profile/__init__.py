"""What was learned of a device: its facts, its samples and its predictors, kept in a folder."""

from .profile import Profile

__all__ = ["Profile"]
