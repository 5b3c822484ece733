"""Every contestant in a process of its own, so that none loses the others' results or fills their memory."""

import dataclasses
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retlab.benchmark.entries import Entry
from retlab.benchmark.plan import Plan
from retlab.benchmark.row import LOADER_ALONE, RETLAB, TOKENISER, Row
from retlab.errors import UserError
from retlab.measuring import copy_bandwidth, product_rate
from retlab.memory import exhausted_memory
from retlab.training.hardware import Hardware

PATIENCE_SECONDS = 600.0
"""How long one measurement may take."""
ENDING_SECONDS = 30.0
"""How long a process may take to end after its last answer."""
LONGEST_REASON = 120


class Machine(NamedTuple):
    """What the machine can do: floating point operations of a matrix product and bytes copied per second."""

    product_flops: float
    copied_bytes: float


class Failed(NamedTuple):
    """A measurement that gave no numbers."""

    reason: str


Send = Callable[[Any], None]


def answers(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """What `work(send, *arguments)` sends from a process of its own; the last answer is a Failed where it broke off.

    The process is ended where it gives no answer for PATIENCE_SECONDS, and where the iteration is left.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(PATIENCE_SECONDS):
                yield Failed(f"no answer within {PATIENCE_SECONDS:,.0f} s")
                return
            try:
                answer = receiver.recv()
            except EOFError:
                break
            yield answer
        process.join(ENDING_SECONDS)
        if process.exitcode:
            yield Failed(_ending(process.exitcode))
    finally:
        process.kill()
        process.join()


def _run(sender: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # The first process answers Ctrl-C, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore")
    # Progress of the stages that are timed here is of no interest.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        work(sender.send, *arguments)
    # Whatever a library raises: it is a line of the table, and the other lines go on.
    except Exception as error:
        sender.send(Failed(reason_of(error)))
    sender.close()


def reason_of(error: Exception) -> str:
    """An exception in a few words for the table."""
    if exhausted_memory(error) is not None or "out of memory" in str(error).lower():
        return "out of memory"
    text = " ".join(str(error).strip().partition("\n")[0].split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _ending(code: int) -> str:
    if code > 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def machine_answers(plan: Plan, hardware: Hardware, text_folder: Path | None) -> Iterator[Machine | Failed | list[Row]]:
    """What the machine can do; with a folder, then the rows of tokeniser and loader, which leave token shards there."""
    yield from answers(_measure_machine, plan, hardware, text_folder)


def _measure_machine(send: Send, plan: Plan, hardware: Hardware, text_folder: Path | None) -> None:
    where, is_gpu = torch.device(hardware.device), hardware.device == "cuda"
    rate = product_rate(where, torch.bfloat16 if hardware.bf16 else torch.float32, 8192 if is_gpu else 2048)
    send(Machine(rate, copy_bandwidth(where, 2**30 if is_gpu else 2**28)))
    if text_folder is None:
        return
    from retlab.benchmark.text_rates import loader_row, tokeniser_row

    for measurement, work in ((TOKENISER, tokeniser_row), (LOADER_ALONE, loader_row)):
        try:
            send([work(plan, text_folder)])
        # As in `_run`.
        except Exception as error:
            send([Row(measurement, "", RETLAB, remark=reason_of(error))])


def entry_rows(plan: Plan, entry: Entry, text_folder: Path) -> Iterator[list[Row]]:
    """The rows of each case of an entry, in order; a failed case is a row that says why, and a new process goes on."""
    left = list(entry.cases)
    while left:
        failure, is_ready = Failed("its process ended without an answer"), False
        for answer in answers(_measure_entry, plan, dataclasses.replace(entry, cases=tuple(left)), text_folder):
            if answer is None:
                is_ready = True
            elif isinstance(answer, Failed):
                failure = answer
            else:
                left.pop(0)
                yield answer
        # What cannot even be imported is not tried again with other shapes.
        failed = left[:1] if is_ready else left[:]
        del left[: len(failed)]
        for case in failed:
            yield entry.failed(case, failure.reason)


def _measure_entry(send: Send, plan: Plan, entry: Entry, text_folder: Path) -> None:
    """Send None once the contestant is ready, then the rows of its cases; the first failure ends it."""
    from transformers.utils import logging

    from retlab.benchmark.bench import Bench

    logging.set_verbosity_error()
    bench = Bench(plan, entry, text_folder)
    send(None)
    for case in entry.cases:
        send(bench.measure(case))
