"""A stand-in for flash-linear-attention 0.6, for tests without a GPU."""

__version__ = "0.6.0"
