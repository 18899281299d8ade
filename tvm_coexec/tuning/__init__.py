"""What is measured on a device, and in what order: layers, variants, whole networks, calibration."""

from .tuning import tune

__all__ = ["tune"]
