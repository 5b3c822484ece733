"""Independent pieces of work over Dask: threads by default, a cluster where a `dask.distributed` client is active."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import dask
from dask.callbacks import Callback

Result = TypeVar("Result")


def run_tasks(
    function: Callable[..., Result],
    calls: Iterable[tuple[Any, ...]],
    workers: int | None,
    done: Callable[[Result], None],
) -> list[Result]:
    """Call a function once for each tuple of arguments and return the results in the order of the calls.

    Args:
        function: works on files alone, because it may run on another machine.
        calls: arguments of each call, small values only.
        workers: threads; None is one per core.
        done: told of each result as it arrives, in any order.
    """

    def arrived(key: object, result: Result, graph: object, state: object, worker: object) -> None:
        del key, graph, state, worker
        done(result)

    tasks = [dask.delayed(function, pure=False)(*call) for call in calls]
    with dask.config.set({"num_workers": workers} if workers else {}), Callback(posttask=arrived):
        return list(dask.compute(*tasks))
