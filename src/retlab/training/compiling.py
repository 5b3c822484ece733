"""What of a training is compiled, and how."""

import torch

from retlab.training.scored import Scored


def compile_parts(scored: Scored) -> None:
    """Compile every block by itself, and the loss: blocks of a kind share one graph, so that depth costs no time.

    On an H100 one graph of a whole model of twelve layers ran no faster, and took three times as long to compile.
    """
    # Kinds of blocks, training and validation, whole and last batches: each is a graph of the same function.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for part in (*scored.model.body.blocks, *scored.objective.children()):
        # What FSDP hangs on a module stays out of the graph.
        part.forward = torch.compile(part.forward, dynamic=False)


def keep_graphs_of_many_models() -> None:
    """Let a process that trains many models keep the graphs of all of them, for others of the same shape."""
    torch._dynamo.config.recompile_limit = 2**14
    torch._dynamo.config.accumulated_recompile_limit = 2**16
