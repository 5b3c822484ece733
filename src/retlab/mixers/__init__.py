"""Sequence and channel mixers: one per file, all of them in the table below."""

from .attention import Attention
from .base import Mixer
from .dilated_attention import DilatedAttention
from .elementary import prepare_elementary_functions
from .glu import GatedLinearUnit
from .retention import Retention

MIXERS: dict[str, type[Mixer]] = {
    "retention": Retention,
    "attention": Attention,
    "dilated_attention": DilatedAttention,
    "glu": GatedLinearUnit,
}
"""The block names that a configuration may use."""

# Here, because whoever computes with a mixer has imported it before.
prepare_elementary_functions()
