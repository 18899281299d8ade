"""How much memory a module takes, and the least that its activations need."""

from __future__ import annotations

from dataclasses import dataclass

from .manifest import Manifest, lifetimes

_WORD_BYTES = 4
"""The unit in which manifests count memory, whatever type its elements have."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a module's memory, which both processors share.

    Parameters
    ----------
    weight_bytes, activation_bytes, scratch_bytes
        Packed constants; tensors, in the buffers that they share; what a half passes from one kernel to its next, and
        what the CPU's threads hold for their kernels, which these ask for as they run: nothing before the first run.
    activation_bound_bytes
        The most that tensors that are needed at the same time take, padding and halos included: no plan needs less.
    """

    weight_bytes: int
    activation_bytes: int
    scratch_bytes: int
    activation_bound_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.scratch_bytes

    def __str__(self) -> str:
        mib = {
            "weights": self.weight_bytes,
            "activations": self.activation_bytes,
            "at least": self.activation_bound_bytes,
            "scratch": self.scratch_bytes,
        }
        sizes = {name: f"{size / 2**20:.1f}" for name, size in mib.items()}
        return (
            f"{self.peak_bytes / 2**20:.1f} MiB: weights {sizes['weights']}, "
            f"activations {sizes['activations']} (at least {sizes['at least']}), scratch {sizes['scratch']}"
        )


def activation_bound_bytes(manifest: Manifest) -> int:
    """Bytes of the tensors that are needed at once, where these are most."""
    counts = manifest.tensor_words()
    kept = {*manifest.inputs, *manifest.outputs}
    lives = lifetimes(manifest.tensors, manifest.steps)
    return _WORD_BYTES * max(
        sum(counts[name] for name, (first, last) in lives.items() if name in kept or first <= number <= last)
        for number in range(1, len(manifest.steps) + 1)
    )
