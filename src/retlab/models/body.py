"""The body of every model: a stack of residual blocks x + mixer(norm(x)) from embeddings to hidden states.

Nothing here knows which mixers it holds: it passes them hidden states, positions, documents and their own states.
"""

import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..mixers import MIXERS, Mixer
from ..mixers.base import Misfit, MixerState, refuse
from ..mixers.rotary import Frequencies, Rotation, rotation, rotation_by
from .fields import FIELDS, Problem, check_value

States = list[MixerState]
"""One state per block, in order; see `retlab.mixers.base`."""


class BodyOutput(NamedTuple):
    """Normed hidden states (batch, tokens, hidden_size), the blocks' states, and the layers' hidden states if asked."""

    hidden: torch.Tensor
    states: States
    hidden_states: tuple[torch.Tensor, ...] | None


def build_mixer(hidden_size: int, settings: dict[str, Any]) -> Mixer:
    """The mixer that an entry of `blocks` names, with the entry's other keys as its settings."""
    refuse(mixer_misfits(hidden_size, settings))
    return MIXERS[settings["name"]](hidden_size, **{key: settings[key] for key in settings.keys() - {"name"}})


def mixer_misfits(hidden_size: int, settings: dict[str, Any]) -> Iterator[Misfit]:
    """Everything that cannot be about an entry of `blocks`."""
    name = settings.get("name")
    if not isinstance(name, str) or name not in MIXERS:
        yield ("name",), f"There is no block named {name!r}: choose one of {', '.join(MIXERS)}."
        return
    parameters = list(inspect.signature(MIXERS[name]).parameters.values())[1:]
    known = {parameter.name: parameter for parameter in parameters}
    # What a model's own fields of the same name may be.
    bounds = {item.name: item.metadata["bounds"] for kind in FIELDS.values() for item in fields(kind)}
    usable = {key: parameter.default for key, parameter in known.items()}
    unknown = settings.keys() - known.keys() - {"name"}
    # Where a setting is misspelt, what stands for it is not known either.
    wrong = known.keys() - settings.keys() if unknown else set[str]()
    for key, value in settings.items():
        if key in unknown:
            yield (key,), f"The block {name!r} has no setting {key!r}; it has {', '.join(known)}."
        elif key != "name":
            try:
                check_value(f"{key} of the block {name!r}", value, known[key].annotation, bounds.get(key, {}))
                usable[key] = value
            except ValueError as error:
                wrong.add(key)
                yield (key,), str(error)
    for keys, sentence in MIXERS[name].misfits(hidden_size, usable):
        if not wrong & set(keys):
            yield keys, sentence


def block_problems(hidden_size: int, blocks: list[dict[str, Any]]) -> Iterator[Problem]:
    """Everything that cannot be about the entries of `blocks` that name a mixer."""
    for number, block in enumerate(blocks):
        for names, sentence in mixer_misfits(hidden_size, block) if "name" in block else ():
            keys = [(name,) if name == "hidden_size" else ("blocks", number, name) for name in names]
            yield Problem(tuple(keys), sentence)


class Norm(nn.RMSNorm):
    """An RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467) computed in float32 at least, in the input's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(x.dtype)

    def of_model_dtype(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of x in the dtype of the weights: on a GPU PyTorch's own kernel widens as it computes."""
        if x.is_cuda and x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return self(x)


class Block(nn.Module):
    """One residual block, pre-norm.

    `gradient_checkpointing` and the function beside it are what transformers sets to recompute activations; its own
    base class for that would make counting parameters import the whole of transformers.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, hidden_size: int, settings: dict[str, Any], norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.norm = Norm(hidden_size, eps=norm_eps)
        self.mixer = build_mixer(hidden_size, settings)
        self.dropout = dropout

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor, MixerState]:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(super().__call__, *inputs)
        return super().__call__(*inputs)

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        segment_ids: torch.Tensor | None,
        state: MixerState,
        keep_state: bool,
        layout: Any = None,
    ) -> tuple[torch.Tensor, MixerState]:
        prepared = () if layout is None else (layout,)
        out, state = self.mixer(self.norm(hidden), rotation, segment_ids, state, *prepared)
        return hidden + F.dropout(out, self.dropout, self.training), state if keep_state else None

    def advance(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        reserved: MixerState,
        slot: torch.Tensor,
        only_last: bool = False,
    ) -> torch.Tensor:
        """The block at tokens that continue, or at the last of them alone; see `Mixer.advance`."""
        if self.mixer.fuses(hidden, self.norm, reserved):
            return self.mixer.advance_fused(hidden, self.norm, rotation, reserved, slot)
        normed = self.norm.of_model_dtype(hidden)
        if only_last:
            return hidden[:, -1:] + self.mixer.advance_to_last(normed, rotation, reserved, slot)
        return hidden + self.mixer.advance(normed, rotation, reserved, slot)


class Body(nn.Module):
    """`num_layers` times the list `blocks`, and a last norm."""

    def __init__(
        self,
        hidden_size: int,
        blocks: list[dict[str, Any]],
        num_layers: int,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks_per_layer = len(blocks)
        self.dropout = dropout
        stack = [Block(hidden_size, settings, norm_eps, dropout) for _ in range(num_layers) for settings in blocks]
        self.blocks = nn.ModuleList(stack)
        self.norm = Norm(hidden_size, eps=norm_eps)
        # Rotations cost little, and much if every block computes its own.
        kinds: list[Frequencies | None] = [block.mixer.frequencies for block in stack]
        self.frequencies = [kind for kind in dict.fromkeys(kinds) if kind is not None]
        self.layout_kinds = [block.mixer.layout_kind for block in stack]
        self.rotation_of_block = [None if kind is None else self.frequencies.index(kind) for kind in kinds]

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        states: States | None = None,
        output_hidden_states: bool = False,
        keep_states: bool = True,
    ) -> BodyOutput:
        """Hidden states of `embeddings` (batch, tokens, hidden_size); the other arguments as in `mixers.base`.

        `positions` None counts from 0. Without `keep_states` the states come back as None: compiled, they then cost
        nothing. The hidden states are the embeddings and the output of every layer, the last
        one normed.
        """
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotations = [rotation(positions, frequencies) for frequencies in self.frequencies]
        device = embeddings.device.type
        if torch.is_autocast_enabled(device):
            # The residual stream in the dtype of the products: in float32 it would be half of what training moves.
            embeddings = embeddings.to(torch.get_autocast_dtype(device))
        hidden = F.dropout(embeddings, self.dropout, self.training)
        seen = [hidden]
        new_states: States = []
        layouts: dict[Hashable, Any] = {None: None}
        stack = zip(self.blocks, self.rotation_of_block, self.layout_kinds, strict=True)
        for index, (block, turned_by, kind) in enumerate(stack):
            turn = None if turned_by is None else rotations[turned_by]
            state = states[index] if states else None
            if kind not in layouts:
                layouts[kind] = cast(Block, block).mixer.layout(hidden, segment_ids, state)
            hidden, state = block(hidden, turn, segment_ids, state, keep_states, layouts[kind])
            new_states.append(state)
            if output_hidden_states and (index + 1) % self.blocks_per_layer == 0:
                seen.append(hidden)
        hidden = self.norm(hidden)
        return BodyOutput(hidden, new_states, (*seen[:-1], hidden) if output_hidden_states else None)

    def advance(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        reserved: States,
        slot: torch.Tensor,
        turns: list[torch.Tensor],
        advance_block: Callable[..., torch.Tensor] = Block.advance,
    ) -> torch.Tensor:
        """Hidden states of the last of the tokens (batch, 1, hidden_size), not normed yet; see `Mixer.advance`.

        `turns` are those of `frequencies`, which are the same for every call.
        """
        rotations = [rotation_by(positions, each) for each in turns]
        hidden = embeddings
        mixers = [cast(Mixer, block.mixer) for block in self.blocks]
        changing = [mixer.changing(memory) for mixer, memory in zip(mixers, reserved, strict=True)]
        last = max((index for index, tensors in enumerate(changing) if tensors), default=-1)
        for index, (block, turned_by, memory) in enumerate(
            zip(self.blocks, self.rotation_of_block, reserved, strict=True)
        ):
            if last < 0:
                hidden = hidden[:, -1:]
            # Behind the last memory no block looks at other tokens.
            only_last = index == last and hidden.shape[1] > 1
            turn = None if turned_by is None else rotations[turned_by]
            hidden = advance_block(block, hidden, turn, memory, slot, only_last)
        return hidden[:, -1:]


def relative_segments(
    segment_ids: torch.Tensor, previous: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the documents of one call as mixers expect it, and say which document is open at its end.

    `segment_ids` (batch, tokens) int64: any number per document, the same for neighbours of one document; negative
    is padding. `previous` (batch,) is the document open before the call, -1 for none. Returns (batch, tokens), with
    -1 for padding, 0 for the document that was open (or the first), 1, 2, ... for those that begin; and (batch,).
    """
    if previous is None:
        previous = segment_ids.new_full((segment_ids.shape[0],), -1)
    real = segment_ids >= 0
    with_previous = torch.cat((previous[:, None], segment_ids), dim=1)
    # The document open after each token: that of the last real token up to it.
    place = torch.arange(with_previous.shape[1], device=segment_ids.device)
    last_real = torch.where(with_previous >= 0, place, 0).cummax(dim=1).values
    open_after = with_previous.gather(1, last_real)
    begins = real & (open_after[:, :-1] >= 0) & (segment_ids != open_after[:, :-1])
    return torch.where(real, begins.cumsum(dim=1), -1), open_after[:, -1]
