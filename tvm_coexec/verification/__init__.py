"""Whether what was built computes what the model says: a whole network against an engine that shares no code."""

from .network import NetworkCheck, Verdict

__all__ = ["NetworkCheck", "Verdict"]
