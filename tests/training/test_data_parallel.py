"""When gradients are marked as complete; `test_processes.py` and `test_two_gpus.py` have the sums of real processes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from retlab.training import data_parallel
from retlab.training.data_parallel import GradientSums, buckets_of


@pytest.fixture
def marks(monkeypatch) -> list[int]:
    """The buckets that were marked, in their order."""
    found: list[int] = []
    monkeypatch.setattr(
        data_parallel,
        "dist",
        SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 2, new_group=lambda pg_options: pg_options),
    )
    monkeypatch.setattr(GradientSums, "_mark", lambda _self, index: found.append(index))
    return found


@pytest.fixture
def model(monkeypatch) -> nn.Sequential:
    """Three layers, each a bucket."""
    monkeypatch.setattr(data_parallel, "buckets_of", lambda parameters: buckets_of(parameters, most=4 * 12))
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))


def sums_of(model: nn.Module) -> GradientSums:
    return GradientSums(model.parameters(), torch.device("cpu"), nodes=1)


def test_buckets_go_from_the_last_parameter_to_the_first_and_leave_frozen_ones_out() -> None:
    sizes = [torch.empty(length) for length in (1, 2, 3, 4, 5)]
    parameters = [nn.Parameter(values, requires_grad=values.numel() != 3) for values in sizes]
    assert [[p.numel() for p in bucket] for bucket in buckets_of(parameters, most=4 * 8)] == [[5], [4, 2, 1]]
    assert [[p.numel() for p in bucket] for bucket in buckets_of(parameters, most=4 * 9)] == [[5, 4], [2, 1]]
    assert [[p.numel() for p in bucket] for bucket in buckets_of(parameters, most=1)] == [[5], [4], [2], [1]]
    assert buckets_of([]) == []


def backward(sums: GradientSums, loss: torch.Tensor) -> None:
    with sums.marking():
        loss.sum().backward()


def test_each_bucket_is_marked_when_its_gradients_are_complete(marks, model) -> None:
    sums = sums_of(model)
    seen: list[list[bool]] = []
    model[1].register_full_backward_pre_hook(lambda *_: seen.append([p.grad is not None for p in model.parameters()]))
    for _ in range(2):
        backward(sums, model(torch.ones(2, 3)))
    assert marks == [0, 1, 2, 0, 1, 2]
    assert seen[0] == [False] * 4 + [True] * 2


def test_a_bucket_of_parameters_that_a_pass_does_not_use_is_marked_at_its_end(marks, model) -> None:
    sums = sums_of(model)
    backward(sums, model[2](model[0](torch.ones(2, 3))))
    assert marks == [0, 2, 1]
    backward(sums, model(torch.ones(2, 3)))
    assert marks == [0, 2, 1, 0, 1, 2]


def test_a_pass_that_broke_off_leaves_nothing_behind_for_the_next(marks, model) -> None:
    """As one that cannot be recorded: what it had counted would have buckets marked before they are complete."""
    sums = sums_of(model)

    def fail(_gradient: torch.Tensor) -> None:
        raise RuntimeError("not while recording")

    hook = model[1].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="not while recording"):
        backward(sums, model(torch.ones(2, 3)))
    assert marks == [0]
    hook.remove()
    complete: list[bool] = []
    sums._mark = lambda index: complete.append(all(p.grad is not None for p in sums._buckets[index]))
    model.zero_grad(set_to_none=True)
    backward(sums, model(torch.ones(2, 3)))
    assert complete == [True] * 3


def test_after_its_end_nothing_is_marked(marks, model) -> None:
    sums = sums_of(model)
    sums.end()
    model(torch.ones(2, 3)).sum().backward()
    assert marks == []
