"""The version, where no metadata has to be installed and every room may read it."""

__version__ = "0.1.0"
