"""The configuration: precedence, every error at once with its place, the template, the resolved copy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from retlab.config import ExperimentConfig, dump_config, load_config
from retlab.config_template import render_schema, render_template
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT

CONFIGS = PROJECT_ROOT / "configs"


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(write(folder, text), overrides)
    return str(caught.value).splitlines()


def test_default_file_override_precedence(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  learning_rate: 2e-4\n  batch_size: 8\n")
    config = load_config(file, ["train.batch_size=16"])
    assert (config.train.learning_rate, config.train.batch_size, config.train.epsilon) == (2e-4, 16, 1e-8)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4"])
def test_numbers_with_exponent_are_numbers(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, f"train: {{learning_rate: {text}}}")).train.learning_rate == 1e-4


def test_overrides_reach_list_items_and_union_members(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  parameter_groups:\n    - {match: a}\n    - {match: b}\n")
    config = load_config(
        file,
        [
            "train.parameter_groups.1.frozen=true",
            "train.parameter_groups[0].match=c",
            "train.schedule={name: step, step_size: 3}",
            "train.schedule.gamma=0.5",
        ],
    )
    assert [(group.match, group.frozen) for group in config.train.parameter_groups] == [("c", False), ("b", True)]
    assert config.train.schedule.dump() == {"warmup_steps": 0, "name": "step", "step_size": 3, "gamma": 0.5}


def test_another_architecture_on_the_command_line_leaves_the_keys_of_the_first(tmp_path: Path) -> None:
    file = write(tmp_path, "model: {architecture: retnet, hidden_size: 64, value_size: 64, chunk_size: 32}")
    assert load_config(file, ["model.architecture=transformer"]).model.hidden_size == 64
    with pytest.raises(UserError, match="value_size"):
        load_config(file, ["model.architecture=transformer", "model.value_size=32"])
    found = problems(tmp_path, "model: {architecture: transformer, value_size: 64}")
    assert "model.value_size: this key belongs to retnet alone" in found[0]


def test_another_variant_on_the_command_line_leaves_the_keys_of_the_first(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {schedule: {name: cosine, warmup_steps: 3, final_ratio: 0.2}}")
    assert load_config(file, ["train.schedule.name=constant"]).train.schedule.warmup_steps == 3
    with pytest.raises(UserError, match="final_ratio: this key belongs to cosine, warmup_stable_decay alone"):
        load_config(file, ["train.schedule.name=constant", "train.schedule.final_ratio=0.1"])


def test_errors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, "train: {max_steps: 0}\nfoo: 1\nseed: -1\ndata: [1]\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "3", "4"]


def test_all_errors_at_once_with_line_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    text = """name: x
seeed: 1
data:
  sequence_length: -4
  packing: paked
train:
  learning_rate: fast
  schedule: {name: cosin}
"""
    found = problems(tmp_path, text)
    assert len(found) == 5, found
    joined = {line.split(": ")[1]: line for line in found}
    assert "mine.yaml:2: seeed: unknown key; did you mean 'seed'?" in joined["seeed"]
    assert "mine.yaml:4:" in joined["data.sequence_length"]
    assert "-4" in joined["data.sequence_length"]
    assert "at least 1" in joined["data.sequence_length"]
    assert "did you mean 'packed'" in joined["data.packing"]
    assert "'padded'" in joined["data.packing"]
    assert "mine.yaml:7:" in joined["train.learning_rate"]
    assert "'fast'" in joined["train.learning_rate"]
    assert "mine.yaml:8:" in joined["train.schedule.name"]
    assert "did you mean 'cosine'" in joined["train.schedule.name"]


def test_sections_that_are_right_are_checked_against_each_other_beside_wrong_ones(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: n\n", "emissions.country=GERMANY", "train.batch_size=four", "traain.x=1")
    assert len(found) == 3, found
    assert any("emissions.country" in line and "DEU" in line for line in found)
    assert all(line.startswith("command line") for line in found)


def test_a_union_section_without_its_name_is_the_default_variant(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "model: {hidden_size: 64}\ntrain: {schedule: {warmup_steps: 3}}\n"))
    assert (config.model.architecture, config.train.schedule.name) == ("retnet", "cosine")


def test_an_error_of_a_section_that_an_override_caused_names_the_override(tmp_path: Path) -> None:
    found = problems(tmp_path, "train: {max_steps: 3}\ndata: {packing: padded}\n", "train.max_epochs=2")
    assert found[0].startswith("command line (train.max_epochs=2): train: found max_steps and max_epochs")


def test_errors_in_union_members_and_list_items_have_their_plain_key_path(tmp_path: Path) -> None:
    text = (
        "train:\n  schedule:\n    name: step\n    step_sise: 4\n  parameter_groups:\n    - {match: a, frosen: true}\n"
    )
    found = problems(tmp_path, text)
    assert any("mine.yaml:4: train.schedule.step_sise: unknown key; did you mean 'step_size'" in line for line in found)
    assert any("train.schedule.step_size: this key is required" in line for line in found)
    assert any("mine.yaml:6: train.parameter_groups.0.frosen: unknown key; did you mean 'frozen'" in x for x in found)


def test_an_error_in_an_override_names_the_override(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: x\n", "train.batch_size=many", "data.sequence_lenght=5", "nonsense")
    assert any("command line (train.batch_size=many): train.batch_size: found 'many'" in line for line in found)
    assert any("command line" in line and "did you mean 'sequence_length'" in line for line in found)
    assert any("'nonsense' is not of the form key.path=value" in line for line in found)


@pytest.mark.parametrize(
    "override", ["train.parameter_groups.2.frozen=true", "train.betas.2=1", "name.x=1", "=3", "a..b=1", "seed=[1"]
)
def test_overrides_that_reach_nothing_are_named(tmp_path: Path, override: str) -> None:
    file_text = "name: n\ntrain: {parameter_groups: [{match: a}]}"
    assert any("command line" in line for line in problems(tmp_path, file_text, override))


@pytest.mark.parametrize("word", ["None", '"null"', "'~'"])
def test_texts_that_mean_nothing_are_refused_with_a_hint(tmp_path: Path, word: str) -> None:
    assert any("write null" in line for line in problems(tmp_path, f"train:\n  init_from: {word}\n"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1\nb: 2\n", "mine.yaml:"),
        ("- 1\n", "must hold keys"),
        ("seed: 1\nseed: 2\n", "second time"),
        ("a: b: c", ":1:"),
        ("train:\n\tseed: 1", "mine.yaml:2: not YAML: a tab"),
        ("a: [1", "never closed"),
        ("5: 1", "mine.yaml:1: 5: this is no name"),
        ("a: &x [*x]", "alias"),
        ("a: !x 1", "tags"),
    ],
)
def test_files_that_are_no_mapping_are_named(tmp_path: Path, text: str, place: str) -> None:
    assert any(place in line for line in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name:", "name: found null; must be text"),
        ("name: 5", "name: found 5; must be text; put it in quotes"),
        ("name: my run", "name: found 'my run'; must consist of letters a-z, digits"),
        ("data:", "data: found nothing; must be keys with values, indented below it, such as source: ..."),
        ("model: retnet", "model: found 'retnet'; must be keys with values"),
        ("train: {betas: [0.9]}", "train.betas: found [0.9]; must be a list of 2 items"),
        ("train: {betas: [0.9, 0.9, 0.9]}", "train.betas: found [0.9, 0.9, 0.9]; must be a list of 2 items"),
        (
            f"model: {{architecture: longnet, segment_lengths: [32, {10**21}], dilation_ratios: [1, 2]}}",
            f"model.segment_lengths.1: found {10**21}; must be below {2**63}",
        ),
        (f"model: {{hidden_size: {10**22}}}", f"model.hidden_size: found {10**22}; must be below {2**63}"),
        ("train: {betas: [2, 0.9]}", "train.betas.0: found 2; must be below 1"),
        ("train: {tensorboard: maybe}", "train.tensorboard: found 'maybe'; must be true or false"),
        ("train: {batch_size: true}", "train.batch_size: found true; must be a number"),
        ("train: {batch_size: 1:30}", "train.batch_size: found '1:30'; must be a whole number"),
        ("train: {learning_rate: .inf}", "train.learning_rate: found .inf; must be a finite number"),
        (
            "train: {max_steps: None}",
            "train.max_steps: found the text 'None'; write null (without quotes) for no value",
        ),
        ("train: {parameter_groups: [{match: '('}]}", "train.parameter_groups.0.match: found '('; must be a regular"),
        ("data: {source: [a, 5]}", "data.source.1: found 5; must be text; put it in quotes"),
        ("data: {source: {a: 1}}", "data.source: found {a: 1}; must be text or a list"),
        ("data: {folder: ''}", "data.folder: found ''; must be a path"),
        ("data: {splits: {val: 0.1}}", "data.splits.val: unknown key; did you mean 'validation'?"),
        ("train: {init_from: ''}", "train.init_from: found ''; write null for no value"),
        ("data.source: x", "data.source: keys are nested in a file; write source: indented below data:"),
        ("model: {layers: 3}", "model.layers: unknown key; this is 301r_retnet's name for 'model.num_hidden_layers'"),
    ],
)
def test_every_kind_of_mistake_is_one_plain_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (found,) = problems(tmp_path, text)
    assert f"mine.yaml:1: {sentence}" in found


def test_words_are_text_and_survive_the_resolved_copy(tmp_path: Path) -> None:
    text = "name: 2026-01-31\ntrain: {compile: on, tensorboard: yes}\ndata: {text_column: '1e-4'}\n"
    config = load_config(write(tmp_path, text + "generate: {prompts: [yes, ~x, 'on: # \"', 'true', '1:30', '010']}\n"))
    assert (config.name, config.train.compile, config.train.tensorboard) == ("2026-01-31", "on", True)
    assert config.generate.prompts == ["yes", "~x", 'on: # "', "true", "1:30", "010"]
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_overrides_reach_items_of_lists_that_the_file_leaves_to_their_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "name: n"), ["train.betas[1]=0.99", "generate.prompts.0=class "])
    assert (config.train.betas, config.generate.prompts) == ((0.9, 0.99), ["class"])


def test_old_names_in_the_readme_hint_at_the_new_ones(tmp_path: Path) -> None:
    table = (PROJECT_ROOT / "README.md").read_text().split("| 301r_retnet | RetLab | |")[1].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.strip().splitlines()[1:]]
    for old, new in rows:
        for key in set(re.findall(r"`(\w+)[`:]", old)) - {"CO2_outfile"}:
            (found,) = problems(tmp_path, f"{key}: 1")
            hint = re.findall(r"'([\w.]+)'", found)[0]
            assert hint.split(".")[-1] in new, (found, new)


def test_files_of_other_editors(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: a\r\nseed: 3\r\n")
    assert load_config(file).seed == 3
    assert load_config(write(tmp_path, "")) == load_config(write(tmp_path, "# nothing\n"))


def test_missing_folder_binary_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path, words in [("no.yaml", "no such file"), (".", "folder"), ("bytes.yaml", "not UTF-8")]:
        with pytest.raises(UserError, match=words):
            load_config(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "model: {architecture: transformer, max_position_embeddings: 64}\ndata: {sequence_length: 65}",
            "sequence_length",
        ),
        ("tokenizer: {vocab_size: 500}\nmodel: {architecture: retnet, vocab_size: 400}", "model.vocab_size"),
        ("train: {batch_size: 6, micro_batch_size: 4}", "train.batch_size"),
        ("train: {batch_size: 3, devices: 2}", "train.batch_size"),
        ("train: {batch_size: 6, devices: 2, num_nodes: 2}", "train.batch_size"),
        ("train: {max_steps: 3, max_tokens: 4}", "train"),
        ("data: {splits: {train: 0.5}}", "data.splits"),
        ("model: {architecture: retnet, hidden_size: 30, num_attention_heads: 4}", "model"),
        ("model: {architecture: retnet, value_size: 30, num_attention_heads: 4}", "model"),
        ("model: {architecture: transformer, hidden_size: 36, num_attention_heads: 4}", "model"),
        ("model: {architecture: longnet, segment_lengths: [8, 4, 16]}", "segment_lengths [8, 4, 16] must increase"),
        ("model: {architecture: longnet, dilation_ratios: [1, 2]}", "lists of the same length"),
        ("model: {architecture: longnet, dilation_ratios: [1, 2, -4]}", "at least 1"),
        ("emissions: {country: US}", "emissions.country"),
        ("emissions: {country: XYZ}", "emissions.country"),
        ("emissions: {country: USA, region: nowhere}", "emissions.region"),
    ],
)
def test_relations_between_keys_are_checked_before_any_compute(tmp_path: Path, text: str, key: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1, found
    assert key in found[0]


def test_the_resolved_copy_gives_the_same_configuration(tmp_path: Path) -> None:
    config = load_config(
        CONFIGS / "quickstart.yaml", ["seed=7", "train.parameter_groups=[{match: norm, frozen: true}]"]
    )
    copy = write(tmp_path, dump_config(config))
    assert load_config(copy) == config


def test_relative_paths_start_at_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(write(tmp_path, "name: n\noutput_dir: elsewhere\ntokenizer: {folder: /abs/tok}\n"))
    assert config.run_folder == PROJECT_ROOT / "elsewhere" / "n"
    assert config.data.folder == PROJECT_ROOT / "data" / "n"
    assert config.tokenizer.folder == Path("/abs/tok")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "name" in problems(tmp_path, f"name: '{name}'\n")[0]


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    load_config(file)


def test_template_and_schema_are_those_of_the_code() -> None:
    assert (CONFIGS / "template_config.yaml").read_text() == render_template(), "run: make template"
    assert (CONFIGS / "schema.json").read_text() == render_schema(), "run: make template"


def test_the_template_holds_every_key_with_its_default() -> None:
    assert yaml.safe_load(render_template()) == ExperimentConfig().dump()
    lines = render_template().splitlines()
    for number, line in enumerate(lines):
        if line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), f"no comment above: {line}"


def test_the_schema_refuses_unknown_keys() -> None:
    schema = json.loads(render_schema())
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(ExperimentConfig.model_fields)


def test_loading_a_configuration_imports_no_heavy_library() -> None:
    code = (
        "import sys; from retlab.config import load_config; load_config(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'dask', 'codecarbon') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(CONFIGS / "quickstart.yaml")]
    environment = {"PYTHONPATH": str(PROJECT_ROOT / "src"), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "[]"
