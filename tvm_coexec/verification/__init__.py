"""Whether what was built computes what the model says: a whole network beside an engine that shares no code with it."""

from .network import NetworkCheck, Verdict

__all__ = ["NetworkCheck", "Verdict"]
