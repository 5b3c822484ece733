"""From axes to points and trials."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.training.experiment import MODEL, make_config, make_inputs

from retlab.artifacts import MANIFEST, read_json, write_json
from retlab.config import load_config
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT
from retlab.sweep.plan import Plan, refuse_invalid, tell_without_inputs
from retlab.sweep.points import make_grid

AXES = {"train.learning_rate": [1e-3, 1e-2], "model.hidden_size": [16, 32]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment")
    make_inputs(path)
    shutil.copytree(path / "tokens" / "validation", path / "tokens" / "test")
    return path


def write(folder: Path, **grid_search: Any) -> Path:
    model = {key: None for key in MODEL if key == "value_size"}
    file = make_config(folder, "sweep", model)
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | {"grid_search": {"axes": AXES} | grid_search}, sort_keys=False))
    return file


def test_points_are_the_product_of_the_axes_with_the_last_one_fastest(folder: Path) -> None:
    grid = make_grid(write(folder, seeds=[0, 5]), [])
    assert [tuple(point.values.values()) for point in grid.points] == [(1e-3, 16), (1e-3, 32), (1e-2, 16), (1e-2, 32)]
    assert [point.number for point in grid.points] == [1, 2, 3, 4]
    assert len({trial.id for trial in grid.trials}) == 4 * 2 * 2
    trial = grid.points[1].trials[1]
    assert (trial.architecture, trial.seed, trial.config.seed) == ("retnet", 5, 5)
    assert (trial.config.train.learning_rate, trial.config.model.hidden_size) == (1e-3, 32)
    assert trial.folder == folder / "runs" / "trials" / trial.id


def test_a_transformer_is_fitted_to_the_first_architectures_parameters(folder: Path) -> None:
    for point in make_grid(write(folder), []).points:
        retnet, transformer = point.trials
        assert retnet.config.model.intermediate_size == MODEL["intermediate_size"]
        assert abs(transformer.parameters - retnet.parameters) <= 0.01 * retnet.parameters
    plain = make_grid(write(folder, match_parameters=False), []).points[0].trials
    assert plain[1].config.model.intermediate_size == MODEL["intermediate_size"]


def test_excluded_points_have_no_number(folder: Path) -> None:
    rule = {"train.learning_rate": 1e-2, "model.hidden_size": [16, 32]}
    grid = make_grid(write(folder, exclude=[rule]), [])
    assert (grid.excluded, [point.values["train.learning_rate"] for point in grid.points]) == (2, [1e-3, 1e-3])


def test_invalid_points_are_listed_with_their_reason(folder: Path) -> None:
    grid = make_grid(write(folder, axes={"model.num_attention_heads": [2, 3]}), [])
    good, bad = grid.points
    assert (good.problem, bad.trials) == (None, [])
    assert bad.problem is not None
    assert bad.problem.startswith("retnet: ")
    assert "num_attention_heads" in bad.problem


def test_invalid_points_are_refused_and_skipped_where_others_are_left(folder: Path) -> None:
    some = make_grid(write(folder, axes={"model.num_attention_heads": [2, 3]}), [])
    with pytest.raises(UserError, match=r"point 2 \(model.num_attention_heads=3\)(.|\n)*--skip-invalid"):
        refuse_invalid(some, skip=False)
    refuse_invalid(some, skip=True)
    with pytest.raises(UserError, match="2 points of 2 cannot be run; mend the axes"):
        refuse_invalid(make_grid(write(folder, axes={"model.num_attention_heads": [3, 5]}), []), skip=True)


def test_rules_that_leave_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="exclude leaves no point"):
        make_grid(write(folder, exclude=[{"train.learning_rate": [1e-3, 1e-2]}]), [])


def test_missing_inputs_name_the_stages_that_make_them(folder: Path) -> None:
    with pytest.raises(UserError, match="missing or unfinished.*02_split_data.sh.*04_tokenize_data"):
        make_grid(write(folder), ["data.tokens_folder=nowhere"])
    with pytest.raises(UserError, match=r"03_train_tokenizer.sh, bash \S*04_tokenize_data.sh with this configuration"):
        make_grid(write(folder), ["tokenizer.folder=nowhere"])


def test_an_axis_that_changes_nothing_is_noted(folder: Path) -> None:
    def lines(**axes: list[Any]) -> str:
        grid = make_grid(write(folder, axes={key.replace("_", ".", 1): values for key, values in axes.items()}), [])
        return "\n".join(Plan(grid, [], [], grid.trials).lines())

    assert "note: point 2 has the very trials of point 1, as train.threads does not" in lines(train_threads=[1, 2])
    assert "note" not in lines(train_learning_rate=[1e-3, 1e-2])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["parameters: retnet ", ", transformer ", "to run 4: 15,360 training tokens"]),
        (["train.max_steps=null", "train.max_epochs=1"], ["to run 4: training tokens not known before"]),
        (["tokenizer.from_pretrained=gpt2", "model.vocab_size=null"], ["parameters: not known before the tokenizer"]),
    ],
)
def test_a_plan_needs_no_data_and_no_tokenizer(
    folder: Path, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    axes = {"train.learning_rate": [1e-3, 1e-2], "model.num_attention_heads": [2, 3]}
    file = write(folder, axes=axes, exclude=[{"train.learning_rate": 1e-2, "model.num_attention_heads": 3}])
    words = [*words, f"data.folder={tmp_path}", f"tokenizer.folder={tmp_path}/none", f"output_dir={tmp_path}/runs"]
    said: list[str] = []
    tell_without_inputs(make_grid(file, words, plan_only=True), said.append)
    text = "\n".join(said)
    for part in ("3 points (1 excluded), retnet, transformer, 1 seed: 4 trials", "invalid: point 2 (", *expected):
        assert part in text
    assert "hours and kWh are known once" in said[-1]
    assert re.search("01_download.*02_split.*03_train_tok.*04_tokenize.* one after the other$", said[-1])
    assert not list(tmp_path.iterdir()), "nothing is done"


def test_a_point_where_no_width_fits_names_the_architecture(folder: Path) -> None:
    axes = {"model.intermediate_size": [1]}
    grid = make_grid(write(folder, axes=axes, architectures=["transformer", "retnet"]), [])
    assert grid.points[0].problem is not None
    assert grid.points[0].problem.startswith("retnet: ")


def test_what_does_not_decide_a_result_does_not_change_its_trial(folder: Path) -> None:
    def ids(*overrides: str, **grid_search: Any) -> set[str]:
        return {trial.id for trial in make_grid(write(folder, **grid_search), overrides).trials}

    before = ids()
    assert ids("name=other", "train.tensorboard=true", "train.checkpoint_every_steps=3", "generate.top_k=7") == before
    assert ids("grid_search.workers=2", "grid_search.seeds=[0,1]") > before
    assert ids("grid_search.axes.train.learning_rate=[1e-3,1e-2,1e-1]") > before
    assert ids("grid_search.axes={train.learning_rate: [1e-3], model.hidden_size: [16]}") < before
    for change in ("train.max_steps=31", "model.dropout=0.2", "data.sequence_length=8", "train.batch_size=16"):
        assert not ids(change) & before, change
    manifest = folder / "tokens" / "test" / MANIFEST
    kept = read_json(manifest)
    write_json(manifest, kept | {"outputs": {"other": {"bytes": 1, "sha256": "0"}}})
    assert not ids() & before, "another test split"
    write_json(manifest, kept)
    assert ids() == before
    weights = folder / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    from_base = ids(f"train.init_from={folder}/base")
    weights.write_bytes(b"22")
    assert not ids(f"train.init_from={folder}/base") & from_base, "other weights to begin with"


@pytest.mark.parametrize(
    ("grid_search", "sentences"),
    [
        ({"axes": {"train.learning_rate": ["0.1"]}}, ["found the text '0.1'; write it without quotes"]),
        ({"axes": {"train.learning_rate": [float("inf")]}}, ["found .inf; must be a finite number"]),
        ({"seeds": []}, ["grid_search.seeds: found []; must be a list of 1 or more"]),
        (
            {"architectures": ["retnet", "transfomer"]},
            ["did you mean 'transformer'?"],
        ),
        ({"exclude": [{"model.hidden_size": []}]}, ["found []; must be a value of the axis, or a list of them"]),
        ({"axes": {"train.lerning_rate": [1]}}, ["grid_search.axes.train.lerning_rate", "train.learning_rate"]),
        ({"axes": {"train.learning_rate": []}}, ["grid_search.axes.train.learning_rate", "found []"]),
        ({"axes": {"train.learning_rate": [1e-3, 2e-3, 1e-3]}}, ["0.001", "twice"]),
        ({"axes": {"train.learning_rate": ["fast"]}}, ["train.learning_rate", "'fast'"]),
        ({"axes": {"train.batch_size": [8, 2.5]}}, ["train.batch_size", "2.5"]),
        ({"axes": {"train.max_steps": [8, True]}}, ["train.max_steps", "true"]),
        ({"axes": {"train.learning_rate": [1e-3, -1]}}, ["train.learning_rate", "-1"]),
        ({"axes": {"data.packing": ["packed", "paded"]}}, ["data.packing", "'padded'"]),
        (
            {"axes": {"train.schedule.name": ["cosine", "cosin"]}},
            ["found 'cosin'; allowed are 'cosine', 'warmup_stable_decay', 'step', 'constant' (did you mean 'cosine'?)"],
        ),
        ({"axes": {"seed": [0, 1]}}, ["grid_search.seeds"]),
        ({"axes": {"model.architecture": ["retnet"]}}, ["grid_search.architectures"]),
        ({"axes": {"train.devices": [1, 2]}}, ["this is no axis; a trial of a sweep takes one GPU or process"]),
        ({"axes": {"tokenizer.vocab_size": [1, 2]}}, ["tokenizer.vocab_size"]),
        ({"axes": {"data.source": ["a", "b"]}}, ["all trials share one text"]),
        ({"exclude": [{"train.lerning_rate": 1}]}, ["grid_search.exclude.0.train.lerning_rate", "train.learning_rate"]),
        ({"exclude": [{"train.learning_rate": 5}]}, ["found 5"]),
        ({"seeds": [1, 2, 1]}, ["grid_search.seeds", "twice"]),
    ],
)
def test_a_wrong_grid_is_refused_where_it_stands(folder: Path, grid_search: dict, sentences: list[str]) -> None:
    file = write(folder, **grid_search)
    with pytest.raises(UserError) as error:
        load_config(file)
    lines = str(error.value).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{file}:")
    assert lines[0].removeprefix(f"{file}:").split(":")[0].isdigit()
    for sentence in sentences:
        assert sentence in lines[0]


@pytest.mark.parametrize(
    ("rule", "lines"),
    [("train.learning_rate", 1), ("train.lerning_rate", 2), ("train.learning_rat", 2)],
)
def test_a_mistyped_axis_is_no_hint_for_a_rule(folder: Path, rule: str, lines: int) -> None:
    with pytest.raises(UserError) as error:
        load_config(write(folder, axes={"train.lerning_rate": [1e-3, 1e-2]}, exclude=[{rule: 1e-2}]))
    found = str(error.value).splitlines()
    assert len(found) == lines, "a rule that has the right name is right as soon as the axis is"
    assert all("the nearest valid key is 'train.learning_rate'" in line for line in found[:1])
    assert all("the nearest is 'train.learning_rate'" in line for line in found[1:])


def test_too_many_trials_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="4 points and 8 trials, more than grid_search.max_trials 7"):
        make_grid(write(folder, max_trials=7), [])


@pytest.mark.parametrize("name", ["retnet_vs_transformer_grid", "retnet_vs_transformer_grid_small"])
def test_the_published_grid_has_144_trials_and_no_invalid_point(folder: Path, name: str) -> None:
    file = PROJECT_ROOT / "configs" / "experiments" / f"{name}.yaml"
    grid = make_grid(file, [f"data.folder={folder}", f"tokenizer.folder={folder / 'tokenizer'}"])
    assert (len(grid.points), len(grid.trials), [point.problem for point in grid.points]) == (72, 144, [None] * 72)


def test_a_word_for_nothing_is_told_once(folder: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load_config(write(folder, axes={"train.learning_rate": ["None", 1e-3]}))
    assert str(refusal.value).count("found the text 'None'; write null") == 1


def test_a_schedule_is_an_axis(folder: Path) -> None:
    cosine, constant, step = make_grid(
        write(folder, axes={"train.schedule.name": ["cosine", "constant", "step"]}), []
    ).points
    assert [one.config.train.schedule.name for one in constant.trials] == ["constant"] * 2
    assert {trial.id for trial in cosine.trials}.isdisjoint({trial.id for trial in constant.trials})
    assert "step_size" in str(step.problem)
