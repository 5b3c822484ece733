"""Several processes on one machine, joined by gloo."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import torch
from tests.training.conftest import make_request
from tests.training.test_trainer import DROPOUT, assert_same_training, deterministic, last, run

from retlab.errors import Interrupted
from retlab.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.component


@pytest.mark.parametrize(("strategy", "packing"), [("ddp", "packed"), ("ddp", "padded"), ("fsdp", "padded")])
def test_two_processes_train_as_one(splits, strategy, packing):
    one, two = (
        make_request(
            splits, f"{strategy}-{packing}-{n}", devices=n, strategy=strategy, packing=packing, micro_batch_size=2
        )
        for n in (1, 2)
    )
    run(one)
    said: list[str] = []
    run(two, say=said.append)
    assert any("2 processes, each on CPU, 1 thread" in line for line in said)
    for left, right in zip(deterministic(one.run_folder), deterministic(two.run_folder), strict=True):
        assert [float(x or 0) for x in left] == pytest.approx([float(x or 0) for x in right], rel=1e-5)
    for name, weight in last(one)["model"].items():
        torch.testing.assert_close(weight, last(two)["model"][name], rtol=1e-4, atol=1e-5)


def test_a_training_goes_on_with_another_number_of_processes_and_says_so(splits):
    one, two = (make_request(splits, "joined", devices=n, micro_batch_size=2) for n in (1, 2))
    whole = make_request(splits, "whole", micro_batch_size=2)
    run(whole)
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        run(one, stop=lambda: next(asked) > 7)
    said: list[str] = []
    run(two, say=said.append)
    assert any("so far on CPU, 1 thread, float32, now on 2 processes, each on CPU, 1 thread" in line for line in said)
    for name, weight in last(whole)["model"].items():
        torch.testing.assert_close(weight, last(two)["model"][name], rtol=1e-4, atol=1e-5)


def test_two_processes_stopped_and_killed_resume_to_the_same_bits(splits):
    """The helper must end with the process that started it, however that ends."""
    pair = {"devices": 2, "micro_batch_size": 1, "max_steps": 60}
    reference = make_request(splits, "pair", DROPOUT, **pair)
    run(reference)
    request = make_request(splits, "pair-stopped", DROPOUT, **pair)
    store = CheckpointStore(request.run_folder / "checkpoints")
    with pytest.raises(Interrupted):
        run(request, stop=lambda: len(store.steps()) > 0)
    stopped_at = store.steps()[-1]
    program = f"""
        from retlab.training.request import TrainingRequest
        from retlab.training.trainer import train
        request = TrainingRequest.model_validate_json({request.model_dump_json()!r})
        train(request, say=print, stop_requested=lambda: False)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment)
    while process.poll() is None and store.steps()[-1] < stopped_at + 10:
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children()
    assert len(helpers) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(helpers, timeout=30)
    assert not alive
    run(request)
    assert_same_training(reference, request)
