"""From axes to points, and from points to trials with everything filled in."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from retlab.artifacts import fingerprint, read_manifest
from retlab.config import ExperimentConfig, load_config
from retlab.config_model import resolve_model, vocabulary_size
from retlab.errors import UserError
from retlab.grid_checks import axis_keys
from retlab.section import script, shown_path
from retlab.sweep.grid import Grid, Point, Trial
from retlab.training.request import source_of_weights
from retlab.upstream import train_settings

# What a trial writes and how it is measured is the sweep's to say, and none of it changes the result.
_TRIAL_TRAINING = {"tensorboard": False, "wandb": None, "keep_best": 1}


def make_grid(file: Path, overrides: Sequence[str], *, plan_only: bool = False) -> Grid:
    """The points of a configuration's grid, each with its trials or with what is wrong with it.

    Args:
        file: the experiment's YAML file.
        overrides: `key.path=value` of the command line.
        plan_only: make a grid also where data or tokenizer are not there, as `Grid.lacking` says then.

    Raises:
        UserError: the configuration itself is wrong, the grid has more trials than it may have, or what they read is
            not there.
    """
    config = load_config(file, overrides)
    section = config.grid_search
    keys = list(section.axes)
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*section.axes.values())]
    kept = [values for values in combinations if not any(_fits(values, rule) for rule in section.exclude)]
    if not kept:
        raise UserError("grid_search.exclude leaves no point of the grid; take out a rule, or values of one")
    count = len(kept) * len(section.architectures) * len(section.seeds)
    if count > section.max_trials:
        raise UserError(
            f"the grid has {len(kept):,} points and {count:,} trials, more than grid_search.max_trials"
            f" {section.max_trials:,}; raise that, or take fewer values, seeds or architectures"
        )
    lacking = missing_inputs(config)
    if lacking and not plan_only:
        raise UserError(lacking)
    maker = _Maker(file, overrides, config, {} if lacking else input_identity(config))
    points = [maker.point(number, values) for number, values in enumerate(kept, start=1)]
    return Grid(config, points, len(combinations) - len(kept), lacking)


def _fits(values: dict[str, Any], rule: dict[str, Any]) -> bool:
    return all(values[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in rule.items())


class _Maker:
    """Makes the trials of points; what they share is worked out once."""

    def __init__(self, file: Path, overrides: Sequence[str], config: ExperimentConfig, inputs: dict[str, str]) -> None:
        self._file, self._config, self._inputs = file, config, inputs
        # The trials have no grid of their own.
        self._overrides = [word for word in overrides if not word.startswith("grid_search")]
        self._trials_folder = Grid(config, [], 0).trials_folder
        self._counted: dict[str, int] = {}

    def point(self, number: int, values: dict[str, Any]) -> Point:
        section = self._config.grid_search
        trials: list[Trial] = []
        problems: list[str] = []
        target: int | None = None
        for architecture in section.architectures:
            try:
                config = self._resolved(architecture, values, target if section.match_parameters else None)
            except UserError as error:
                problems += [f"{architecture}: {line}" for line in _without_place(str(error))]
                # The sizes of the others follow those of the first.
                if section.match_parameters and target is None:
                    break
                continue
            parameters = self._parameters(config)
            # Without a vocabulary, in a plan, nothing can be fitted.
            target = target or parameters or None
            trials += [self._trial(architecture, seed, config, parameters) for seed in section.seeds]
        if problems:
            return Point(number, values, problem="; ".join(dict.fromkeys(problems)))
        return Point(number, values, trials)

    def _resolved(self, architecture: str, values: dict[str, Any], target: int | None) -> ExperimentConfig:
        own = {key: value for key, value in values.items() if key in self._keys(architecture)}
        if target is not None:
            own.pop("model.intermediate_size", None)
            own["model.match_parameters_of"] = None
        # Its axes are checked, and checking them again at every point takes longer than all else.
        words = [
            "grid_search={}",
            f"model.architecture={architecture}",
            *(f"{key}={_flow(value)}" for key, value in own.items()),
        ]
        config = load_config(self._file, [*self._overrides, *words])
        if target is None:
            return resolve_model(config)
        return _matched(config, target)

    def _keys(self, architecture: str) -> list[str]:
        section = self._config.grid_search.model_copy(update={"architectures": [architecture]})
        return axis_keys(self._config.model_copy(update={"grid_search": section}))

    def _parameters(self, config: ExperimentConfig) -> int:
        """Parameters of the model; 0 as long as its vocabulary is not known."""
        vocabulary = vocabulary_size(config)
        if vocabulary is None:
            return 0
        key = json.dumps([config.model.dump(), vocabulary])
        if key not in self._counted:
            from retlab.models.counting import count_parameters

            self._counted[key] = count_parameters(config.model.to_fields(vocabulary)).total
        return self._counted[key]

    def _trial(self, architecture: str, seed: int, config: ExperimentConfig, parameters: int) -> Trial:
        training = config.train.model_copy(update=_TRIAL_TRAINING)
        config = config.model_copy(
            update={"seed": seed, "train": training, "output_dir": self._trials_folder,
                    "grid_search": type(config.grid_search)()}
        )  # fmt: skip
        decisive = train_settings(config) | self._inputs | {"evaluate.precision": config.evaluate.precision}
        if weights := source_of_weights(training.init_from):
            decisive["weights of train.init_from"] = weights
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
        return Trial(
            architecture, seed, config.model_copy(update={"name": f"{architecture}-{digest[:16]}"}), parameters
        )


def _matched(config: ExperimentConfig, target: int) -> ExperimentConfig:
    from retlab.models.counting import match_intermediate_size, with_intermediate_size

    vocabulary = vocabulary_size(config)
    assert vocabulary is not None
    fields = config.model.to_fields(vocabulary)
    try:
        width = match_intermediate_size(fields, target)
    except ValueError as error:
        raise UserError(str(error)) from None
    return config.model_copy(update={"model": config.model.with_fields(with_intermediate_size(fields, width))})


def _inputs(config: ExperimentConfig) -> dict[str, Path]:
    assert config.tokenizer.folder is not None
    return {
        "train shards": config.data.shards_folder("train"),
        "validation shards": config.data.shards_folder("validation"),
        "test shards": config.data.shards_folder("test"),
        "tokenizer": config.tokenizer.folder,
    }


def missing_inputs(config: ExperimentConfig) -> str | None:
    """What of all that trials read a stage before has not finished, and the commands that make it, in a sentence."""
    inputs = _inputs(config)
    gone = [folder for folder in inputs.values() if read_manifest(folder) is None]
    if not gone:
        return None
    # Stages that are done already are up to date and do nothing.
    made = {
        "download_data": config.data.raw_folder,
        "split_data": config.data.splits_folder,
        "train_tokenizer": inputs["tokenizer"],
    }
    stages = [stage for stage, folder in made.items() if read_manifest(folder) is None]
    if read_manifest(config.data.splits_folder) is not None:
        stages = [stage for stage in stages if stage == "train_tokenizer"]
    stages.append("tokenize_data")
    commands = ", ".join(map(script, stages))
    return (
        f"{shown_path(gone[0])} is missing or unfinished, and a sweep needs it; run {commands} with this configuration"
        + (", one after the other" if len(stages) > 1 else "")
    )


def input_identity(config: ExperimentConfig) -> dict[str, str]:
    """What all trials of a sweep read, by its content. Raises UserError where a stage before has not finished it."""
    return {name: fingerprint(folder) for name, folder in _inputs(config).items()}


def _flow(value: Any) -> str:
    """A value as an override of the command line gives it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=100_000, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _without_place(message: str) -> Iterator[str]:
    """The sentences without the override that they come from: a point's values stand beside them."""
    for line in message.splitlines():
        place, separator, rest = line.partition("): ")
        yield rest if separator and place.startswith("command line (") else line
