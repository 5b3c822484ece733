"""Several processes on one machine, joined by gloo."""

import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest
import torch
from tests.forked import Script
from tests.training.conftest import make_request
from tests.training.experiment import finish, make_config, make_inputs, start
from tests.training.several_processes import TIED, assert_several_train_as_one
from tests.training.test_trainer import DROPOUT, assert_same_training, last, run

from retlab.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError
from retlab.training import processes
from retlab.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.component


@pytest.mark.parametrize(
    ("strategy", "packing", "model"),
    [
        ("ddp", "padded", {}),
        ("ddp", "packed", TIED),
        ("fsdp", "packed", TIED),
    ],
    ids=["ddp-padded", "ddp-tied-transformer", "fsdp-tied-transformer"],
)
def test_two_processes_train_as_one(splits, strategy, packing, model):
    said = assert_several_train_as_one(splits, strategy, packing, model)
    assert any(f"2 processes ({strategy}), each on CPU, 1 thread" in line for line in said)


def test_three_processes_train_as_one(splits):
    said = assert_several_train_as_one(splits, "ddp", "packed", {}, devices=3, batch_size=6)
    assert any("3 processes (ddp), each on CPU, 1 thread" in line for line in said)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_training_goes_on_with_another_number_of_processes_and_says_so(splits, strategy):
    one, two = (
        make_request(splits, f"joined-{strategy}", devices=n, strategy=strategy, micro_batch_size=2) for n in (1, 2)
    )
    whole = make_request(splits, "whole", micro_batch_size=2)
    if not whole.run_folder.exists():
        run(whole)
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        run(one, stop=lambda: next(asked) > 4)
    asked = itertools.count(1)
    said: list[str] = []
    with pytest.raises(Interrupted):
        run(two, stop=lambda: next(asked) > 4, say=said.append)
    run(one)
    assert any(
        f"so far on CPU, 1 thread, float32, now on 2 processes ({strategy}), each on CPU, 1 thread" in line
        for line in said
    )
    for name, weight in last(whole)["model"].items():
        torch.testing.assert_close(weight, last(one)["model"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("devices", "number"), [(2, signal.SIGKILL), (3, signal.SIGSTOP)])
def test_a_process_that_dies_is_one_sentence_and_nothing_hangs(tmp_path, devices, number):
    """SIGSTOP and then SIGKILL: the others already wait for it."""
    make_inputs(tmp_path)
    config = make_config(tmp_path, "dies", max_steps=100_000, devices=devices, batch_size=12, validate_every_steps=1000)
    process = start(config)
    store = CheckpointStore(tmp_path / "runs" / "dies" / "checkpoints")
    while process.poll() is None and not store.steps():
        time.sleep(0.05)
    helpers = psutil.Process(process.pid).children()
    helpers[-1].send_signal(number)
    if number == signal.SIGSTOP:
        time.sleep(1)
        helpers[-1].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_USER_ERROR, output
    assert f"error: process {devices} of the training was ended by SIGKILL (out of memory?)" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not psutil.wait_procs(helpers, timeout=120)[1]
    assert store.last() is not None


def test_a_process_whose_gpu_is_full_says_so_where_the_others_hang(tmp_path, splits, monkeypatch):
    """NCCL's error looks like a lost connection; gloo has none, so what the helper does is made up, and it is real."""
    program = """
        import sys, torch.distributed as dist
        from retlab.training import helper, trainer
        def fail(*_):
            raise dist.DistBackendError("NCCL error in: x.cpp:1, unhandled cuda error\\nLast error:\\nout of memory")
        trainer.train_as_helper = fail
        sys.exit(helper.main())
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    command = [sys.executable, str(tmp_path / "program.py")]
    start_process = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", lambda _command, **how: start_process(command, **how))
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.1)
    said, left = list[str](), threading.Event()

    def leave(sentence: str) -> None:
        said.append(sentence)
        left.set()

    request, place = make_request(splits).model_dump_json(), processes.Place(devices=2)
    with processes.all_processes(request, place, leave=leave):
        assert left.wait(120)
    reason = "NCCL error in: x.cpp:1, unhandled cuda error Last error: out of memory"
    sentence = f"process 2 of the training lost its connection to the others ({reason}); checkpoints are kept"
    assert said[0].startswith(sentence)
    # The first may wait for it on the host, and hears that it is gone; and so may the first of another node.
    monkeypatch.setattr(processes, "LOST_SECONDS", 60)
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 60)
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(UserError, match=re.escape(sentence)), processes.all_processes(request, place, leave=leave):
        raise gone
    there = place._replace(node=1, nodes=2)
    with pytest.raises(torch.distributed.DistError) as found, processes.all_processes(request, there, leave=leave):
        raise gone
    assert str(found.value) == reason


def test_ctrl_c_in_a_terminal_saves_and_ends_all_processes(tmp_path):
    """The terminal signals the whole group, also while the helpers still start."""
    make_inputs(tmp_path)
    config = make_config(tmp_path, "ended", max_steps=100_000, devices=2)
    process = start(config)
    while process.poll() is None and not psutil.Process(process.pid).children():
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert re.search("interrupted: (saved after step|before the first)", output), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"devices": 3}, "train.batch_size: found 8, which the 3 processes of train.devices do not divide"),
        ({"devices": 2, "micro_batch_size": 8}, "train.batch_size: found 8, no multiple of micro_batch_size 8 times"),
    ],
)
def test_a_batch_that_processes_cannot_share_is_one_sentence(tmp_path, train, sentence):
    code, output = finish(make_config(tmp_path, "odd", **train))
    assert code == EXIT_USER_ERROR
    assert sentence in output
    assert len(output.splitlines()) == 1, output


def test_two_processes_stopped_and_killed_resume_to_the_same_bits(splits, tmp_path):
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
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    process = Script(tmp_path / "program.py", PYTHONPATH=os.pathsep.join(sys.path))
    while process.poll() is None and store.steps()[-1] < stopped_at + 10:
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children()
    assert len(helpers) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(helpers, timeout=120)
    assert not alive
    run(request)
    assert_same_training(reference, request)
