import csv
import gc
import itertools
from pathlib import Path

import pytest
import torch
from tests.training.conftest import make_request

from retlab.errors import Interrupted, UserError
from retlab.training.checkpoints import CheckpointStore, load_checkpoint
from retlab.training.metrics import COLUMNS, DETERMINISTIC_COLUMNS, VOLATILE_COLUMNS
from retlab.training.module import TrainingModule
from retlab.training.request import TrainingRequest
from retlab.training.trainer import TrainingResult, new_model, train

DROPOUT = {"dropout": 0.1, "activation_dropout": 0.1}


def run(request: TrainingRequest, stop=lambda: False, say=lambda _line: None) -> TrainingResult:
    return train(request, say=say, stop_requested=stop)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def deterministic(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in DETERMINISTIC_COLUMNS) for row in rows(folder)]


def last(request: TrainingRequest) -> dict:
    found = CheckpointStore(request.run_folder / "checkpoints").last()
    assert found is not None
    return found


def assert_same_training(one: TrainingRequest, other: TrainingRequest) -> None:
    """Weights, optimizer, state and logged numbers agree bit for bit."""
    left, right = last(one), last(other)
    assert left["model"].keys() == right["model"].keys()
    for name, weight in left["model"].items():
        assert torch.equal(weight, right["model"][name]), name
    for name, moments in left["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, right["optimizer"]["state"][name][key]), (name, key)
    for key in ("step", "tokens", "best", "position", "validations_without_gain"):
        assert left[key] == right[key], key
    assert deterministic(one.run_folder) == deterministic(other.run_folder)
    assert sorted(p.name for p in (one.run_folder / "checkpoints").iterdir()) == sorted(
        p.name for p in (other.run_folder / "checkpoints").iterdir()
    )


def test_a_training_learns_logs_and_reports(splits):
    request = make_request(splits, "learns", max_steps=40, validate_every_steps=20)
    result = run(request)
    found = rows(request.run_folder)
    assert set(DETERMINISTIC_COLUMNS) | set(VOLATILE_COLUMNS) == set(found[0]) == set(COLUMNS)
    assert [int(row["step"]) for row in found] == list(range(2, 41, 2))
    assert float(found[-1]["loss"]) < 0.85 * float(found[0]["loss"])
    assert [row["step"] for row in found if row["validation_loss"]] == ["20", "40"]
    assert all(float(row["tokens_per_second"]) > 0 and int(row["peak_memory_bytes"]) > 0 for row in found)
    report = result.report()
    assert report["steps"] == 40
    assert report["tokens"] == 40 * 8 * 16 == int(found[-1]["tokens"])
    assert report["best_validation_loss"] == float(found[-1]["validation_loss"])
    assert report["parameters"] == sum(parameter.numel() for parameter in new_model(request).parameters())


@pytest.mark.parametrize("calls", [1, 2, 6, 11, 16, 22])
def test_a_stop_at_any_moment_resumes_to_the_same_bits(splits, calls):
    """The n-th question whether to stop is answered yes: between steps, before and inside validations."""
    reference = make_request(splits, "reference", DROPOUT, max_steps=14)
    if not reference.run_folder.exists():
        run(reference)
    request = make_request(splits, f"stopped-{calls}", DROPOUT, max_steps=14)
    asked = itertools.count(1)
    with pytest.raises(Interrupted, match="before the first" if calls == 1 else "saved after step"):
        run(request, stop=lambda: next(asked) >= calls)
    run(request)
    assert_same_training(reference, request)


def test_a_stop_before_the_first_step_says_that_nothing_was_to_be_saved(splits):
    request = make_request(splits, "stopped-at-once")
    with pytest.raises(Interrupted, match="before the first of 12 steps, with nothing to save yet"):
        run(request, stop=lambda: True)
    assert not CheckpointStore(request.run_folder / "checkpoints").steps()


def test_a_resumed_training_that_is_stopped_again_and_again_is_the_same(splits):
    reference = make_request(splits, "reference-padded", DROPOUT, max_steps=14, packing="padded")
    run(reference)
    request = make_request(splits, "often", DROPOUT, max_steps=14, packing="padded")
    for _ in range(20):
        asked = itertools.count(1)
        try:
            run(request, stop=lambda: next(asked) >= 4)  # noqa: B023
        except Interrupted:
            continue
        break
    run(request)
    assert_same_training(reference, request)


def test_a_finished_training_is_not_trained_again(splits):
    request = make_request(splits, "finished")
    first = run(request)
    before = deterministic(request.run_folder)
    assert run(request).report() == first.report()
    assert deterministic(request.run_folder) == before


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_accumulation_does_not_change_the_training(splits, packing):
    whole = make_request(splits, f"whole-{packing}", packing=packing, micro_batch_size=8)
    parts = make_request(splits, f"parts-{packing}", packing=packing, micro_batch_size=1)
    run(whole)
    run(parts)
    for one, other in zip(deterministic(whole.run_folder), deterministic(parts.run_folder), strict=True):
        assert [float(x) if x else 0 for x in one] == pytest.approx([float(x) if x else 0 for x in other], rel=1e-5)


def test_the_gradient_is_that_of_the_mean_over_all_counted_tokens(splits, monkeypatch):
    """Against one plain step written by hand, with padding and micro-batches of unequal counts."""
    request = make_request(splits, "by-hand", packing="padded", max_steps=1, gradient_clip_norm=None)
    seen = []
    step = TrainingModule.training_step

    def record(self, batch, batch_idx):
        seen.extend(batch)
        step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", record)
    run(request)
    model = new_model(request)
    batch = {key: torch.cat([micro[key] for micro in seen]) for key in ("input_ids", "targets", "loss_mask")}
    logits = model(input_ids=batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits[batch["loss_mask"]], batch["targets"][batch["loss_mask"]])
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    row = rows(request.run_folder)[0]
    assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-6)
    assert float(row["gradient_norm"]) == pytest.approx(norm.item(), rel=1e-5)
    assert int(row["tokens"]) == int(batch["loss_mask"].sum()) < batch["loss_mask"].numel()


def test_early_stopping_keeps_the_best(splits):
    request = make_request(
        splits, "early", max_steps=60, learning_rate=1.0, validate_every_steps=1, early_stopping_patience=3, keep_best=2
    )
    result = run(request)
    losses = [(float(row["validation_loss"]), int(row["step"])) for row in rows(request.run_folder)]
    assert result.report()["stopped_early"]
    assert result.best_step == min(losses)[1] == result.report()["steps"] - 3
    best_two = {step for _, step in sorted(losses)[:2]}
    assert set(CheckpointStore(request.run_folder / "checkpoints").steps()) == best_two | {result.report()["steps"]}


@pytest.mark.parametrize(
    ("length", "steps"), [({"max_steps": 3}, 3), ({"max_tokens": 3 * 128 + 1}, 4), ({"max_epochs": 0.1}, None)]
)
def test_length_in_steps_tokens_and_epochs(splits, length, steps):
    request = make_request(splits, f"length-{next(iter(length))}", **{"max_steps": None, **length})
    report = run(request).report()
    epoch = float(rows(request.run_folder)[-1]["epoch"])
    assert report["steps"] == steps if steps else 0.1 <= epoch < 0.1 + 1 / 29


def test_a_loss_that_is_not_finite_stops_and_names_the_windows(splits, monkeypatch):
    request = make_request(splits, "infinite")
    seen: dict[int, list[int]] = {}
    gradients_of = TrainingModule._gradients_of

    def poisoned(self, micro, *arguments, **keywords):
        loss = gradients_of(self, micro, *arguments, **keywords)
        seen.setdefault(self.state.step + 1, []).append(micro["sample_ids"].tolist())
        bad = self.state.step + 1 == 5 and len(seen[5]) == 2
        return loss * float("nan") if bad else loss

    monkeypatch.setattr(TrainingModule, "_gradients_of", poisoned)
    with pytest.raises(UserError, match="the loss became nan at step 5") as caught:
        run(request)
    assert f"windows {', '.join(map(str, seen[5][1]))} of" in str(caught.value)
    assert last(request)["step"] == 3


def test_a_training_of_other_settings_is_set_aside_and_one_of_another_model_refused(splits):
    run(make_request(splits, "mine", max_steps=2))
    said: list[str] = []
    run(make_request(splits, "mine", max_steps=2, learning_rate=2e-2), say=said.append)
    assert any("learning_rate: 0.01 -> 0.02" in line for line in said)
    assert load_checkpoint(splits / "mine.1" / "checkpoints" / "step-00000002.pt")["step"] == 2
    other = make_request(splits, "mine", {"hidden_size": 24}, max_steps=2, learning_rate=2e-2)
    with pytest.raises(UserError, match=r"another model \(hidden_size: 16 -> 24\)"):
        run(other)
    (splits / "mine" / "config.yaml").write_text("name: mine")
    run(other.model_copy(update={"start_anew": True}))
    assert (splits / "mine.2" / "metrics.csv").exists()
    assert (splits / "mine.2" / "config.yaml").read_text() == "name: mine"
    assert last(other)["model_config"]["hidden_size"] == 24
    # Of a finished training the stage itself says what changed.
    (splits / "mine" / "model").mkdir()
    said.clear()
    run(make_request(splits, "mine", {"hidden_size": 24}, max_steps=2, learning_rate=3e-2), say=said.append)
    assert not any("learning_rate" in line for line in said)
    assert (splits / "mine.3" / "model").exists()


def test_an_attempt_that_left_no_checkpoint_is_written_over(splits):
    request = make_request(splits, "early-end")
    with pytest.raises(Interrupted, match="before the first of 12 steps"):
        run(request, stop=lambda: True)
    assert (request.run_folder / "metrics.csv").exists()
    run(request)
    assert not (splits / "early-end.1").exists()
    reference = make_request(splits, "finished-at-once")
    run(reference)
    assert_same_training(reference, request)


def test_setting_aside_that_was_killed_is_finished(splits, monkeypatch):
    run(make_request(splits, "moved", max_steps=2))
    changed = make_request(splits, "moved", max_steps=2, learning_rate=2e-2)
    rename = Path.rename

    def die_at_metrics(self, target):
        if self.name == "metrics.csv":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_at_metrics)
        with pytest.raises(KeyboardInterrupt):
            run(changed)
    assert (splits / ".moved.partial" / "checkpoints").exists()
    run(changed)
    assert sorted(file.name for file in (splits / "moved.1").iterdir()) == ["checkpoints", "metrics.csv"]
    assert not (splits / ".moved.partial").exists()
    assert not (splits / "moved.2").exists()


def test_init_from_starts_at_the_weights_of_a_folder(splits, tmp_path):
    request = make_request(splits, "first")
    model = new_model(request)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.save_pretrained(tmp_path / "model")
    started = make_request(
        splits, "started", max_steps=1, init_from=str(tmp_path / "model"),
        parameter_groups=[{"match": "lm_head", "frozen": True}],
    )  # fmt: skip
    run(started)
    assert torch.equal(last(started)["model"]["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(last(started)["model"]["embed_tokens.weight"], model.embed_tokens.weight)
    wider = make_request(splits, "wider", {"hidden_size": 24}, init_from=str(tmp_path / "model"))
    with pytest.raises(UserError, match="model of other sizes .hidden_size: 16 -> 24"):
        run(wider)
    other = make_request(splits, "other", {"architecture": "transformer"}, init_from=str(tmp_path / "model"))
    del other.model["value_size"]
    with pytest.raises(UserError, match="is a retlab_retnet model"):
        run(other)
    with pytest.raises(UserError, match="is no model folder"):
        run(make_request(splits, "none", init_from=str(tmp_path)))


@pytest.mark.parametrize(
    ("train_section", "message"),
    [
        ({"device": "cuda"}, "sees no GPU"),
        ({"wandb": "project"}, "needs the wandb package"),
        ({"batch_size": 4096}, "lower the batch size"),
    ],
)
def test_what_the_machine_or_the_data_cannot_do_is_one_sentence(splits, train_section, message):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=message):
        run(make_request(splits, "impossible", **train_section))


def test_a_validation_split_shorter_than_a_window_is_refused(splits):
    request = make_request(splits, "long")
    longer = request.data.model_copy(update={"sequence_length": 800})
    with pytest.raises(UserError, match="validation split .* less than one window"):
        run(request.model_copy(update={"data": longer, "train": request.train.model_copy(update={"batch_size": 4})}))


def test_tensorboard_gets_the_same_numbers(splits):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    request = make_request(splits, "board", tensorboard=True, max_steps=4)
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        run(request, stop=lambda: next(asked) >= 3)
    run(request)
    events = EventAccumulator(str(request.run_folder / "tensorboard")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == {int(row["step"]): pytest.approx(float(row["loss"])) for row in rows(request.run_folder)}


def test_what_a_process_has_left_out_of_garbage_collections_stays_out(splits):
    """A worker does so once for its libraries, and each of its trainings gives all of its own back."""
    run(make_request(splits, "collected", max_steps=1))
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        run(make_request(splits, "left-out", max_steps=1))
        assert 0 < gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()
