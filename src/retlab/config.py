"""The whole configuration of an experiment: load a YAML file, override, check, dump."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from retlab import yaml_file
from retlab.cluster_settings import ClusterSection
from retlab.config_checks import cross_section_errors
from retlab.config_errors import sections_at, sections_in, tag_values
from retlab.config_problems import find_problems
from retlab.data.settings import DataSection, TokenizerSection
from retlab.emissions import EmissionsSection
from retlab.errors import UserError
from retlab.evaluation.settings import EvaluateSection, GenerateSection
from retlab.models.settings import ModelSection, RetNetSection
from retlab.section import ProjectPath, Section, absolute
from retlab.sweep_settings import GridSearchSection
from retlab.training.settings import TrainSection

LARGEST_NUMBER = 2**63
"""Where whole numbers end for the libraries that take them."""


class ExperimentConfig(Section):
    """One experiment: everything that its stages need to know."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    "Name of the experiment; its run folder is <output_dir>/<name>."
    seed: int = Field(default=0, ge=0, lt=2**63)
    "Seed of the weights, of dropout and of the order of the training windows."
    output_dir: ProjectPath = Path("runs")
    "Folder of the run folders."
    data: DataSection = DataSection()
    "Text, splits and batches."
    tokenizer: TokenizerSection = TokenizerSection()
    "Tokenizer."
    model: ModelSection = RetNetSection.model_validate({})
    "Model."
    train: TrainSection = TrainSection()
    "Training."
    evaluate: EvaluateSection = EvaluateSection()
    "Evaluation."
    generate: GenerateSection = GenerateSection()
    "Samples."
    grid_search: GridSearchSection = GridSearchSection()
    "Grid search."
    emissions: EmissionsSection = EmissionsSection()
    "Energy and emissions."
    cluster: ClusterSection = ClusterSection()
    "Slurm and Dask."

    @property
    def run_folder(self) -> Path:
        """Folder of everything that belongs to this experiment alone."""
        return self.output_dir / self.name


def load_config(file: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read, override, validate and complete a configuration.

    Precedence: default, file, override. Null folders are filled in from the experiment's name.

    Raises:
        UserError: everything that is wrong, a line each: file, line, key, value, what is allowed, nearest key.
    """
    file = Path(file)
    try:
        values, lines, unusable = yaml_file.read(file)
    except yaml_file.YamlError as error:
        raise UserError(_located(file, error.line, error.message)) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            _located(file, 1, f"found {yaml_file.shown(values)}; the file must hold keys, such as name: mine")
        )
    problems = [_located(file, error.line, error.message) for error in unusable]
    overridden: dict[yaml_file.KeyPath, str] = {}
    defaults = ExperimentConfig().dump()
    for argument in overrides:
        try:
            path, value = yaml_file.split_override(argument)
            yaml_file.set_value(values, path, value, defaults)
            overridden[path] = argument
            lines = {key: line for key, line in lines.items() if key[: len(path)] != path}
        except yaml_file.YamlError as error:
            problems.append(f"command line: {error.message}")
    too_large = list(_take_out_too_large(values))
    _leave_other_variants(values, overridden)
    _fill_in_variants(values, ExperimentConfig)
    source = _Source(file, lines, overridden)
    config, found = find_problems(values, ExperimentConfig, cross_section_errors)
    told = [(problem.path, problem.message) for problem in found]
    told += [(path, f"found {value}; must be below {LARGEST_NUMBER}") for path, value in too_large]
    told.sort(key=lambda one: source.line(one[0]))
    problems += [source.sentence(*one) for one in told]
    if problems:
        raise UserError("\n".join(problems))
    return _complete(config)


def dump_config(config: ExperimentConfig) -> str:
    """The configuration as YAML text; loading it gives the same configuration."""
    return yaml_file.dump(config.dump())


def _complete(config: ExperimentConfig) -> ExperimentConfig:
    """Fill in what depends on the name: the folders of data, tokens and tokenizer."""
    folder = config.data.folder or absolute(f"data/{config.name}")
    tokens_folder = config.data.tokens_folder or folder / "tokens"
    data = config.data.model_copy(update={"folder": folder, "tokens_folder": tokens_folder})
    tokenizer = config.tokenizer.model_copy(update={"folder": config.tokenizer.folder or folder / "tokenizer"})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def _fill_in_variants(values: dict[str, Any], section: type[BaseModel]) -> None:
    """Name the default variant where the file gives keys of a union without saying of which."""
    for name, field in section.model_fields.items():
        here, variants = values.get(name), sections_in(field.annotation)
        if not isinstance(here, dict):
            continue
        if len(variants) > 1 and isinstance(field.default, Section):
            tag = next(key for key in ("architecture", "name") if key in type(field.default).model_fields)
            here.setdefault(tag, getattr(field.default, tag))
        for variant in variants:
            _fill_in_variants(here, variant)


def _leave_other_variants(values: dict[str, Any], overridden: dict[yaml_file.KeyPath, str]) -> None:
    """Drop the file's keys of a variant (such as an architecture) that the command line replaced by another."""
    for path in overridden:
        variants = {
            name: one.model_fields for one in sections_at(ExperimentConfig, path[:-1]) for name in tag_values(one)
        }
        here: Any = values
        for step in path[:-1]:
            here = here[step]
        if (
            path[-1] not in ("name", "architecture")
            or not isinstance(here, dict)
            or here[path[-1]] not in list(variants)
        ):
            continue
        foreign = {key for fields in variants.values() for key in fields} - variants[here[path[-1]]].keys()
        for key in [key for key in here if key in foreign and (*path[:-1], key) not in overridden]:
            del here[key]


def _take_out_too_large(values: dict[str, Any]) -> Iterator[tuple[yaml_file.KeyPath, int]]:
    """Whole numbers that no library takes; others take their places, so that only they are told of."""
    for path, value in list(yaml_file.leaves(values)):
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            yield path, value
            parent: Any = values
            for step in path[:-1]:
                parent = parent[step]
            last: Any = path[-1]
            if isinstance(parent, list):
                parent[last] = LARGEST_NUMBER - 1
            else:
                del parent[last]


def _located(file: Path, line: int | None, message: str) -> str:
    return f"{file}:{line}: {message}" if line else f"{file}: {message}"


class _Source:
    """Where a value came from: a line of the file or an override."""

    def __init__(self, file: Path, lines: dict[yaml_file.KeyPath, int], overridden: dict[yaml_file.KeyPath, str]):
        self.file, self.lines, self.overridden = file, lines, overridden

    def line(self, path: yaml_file.KeyPath) -> int:
        """Where the value, or the nearest section around it, stands in the file; 0 where it does not."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), 0)

    def sentence(self, path: yaml_file.KeyPath, message: str) -> str:
        shown = f"{'.'.join(map(str, path))}: {message}" if path else message
        below = [argument for key, argument in self.overridden.items() if path and key[: len(path)] == path]
        if below:
            return f"command line ({', '.join(below)}): {shown}"
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return f"command line ({self.overridden[path[:length]]}): {shown}"
            if path[:length] in self.lines:
                return _located(self.file, self.lines[path[:length]], shown)
        return _located(self.file, None, shown)
