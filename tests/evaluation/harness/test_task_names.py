"""Names, groups, patterns and '*' as tasks, each once, and what is said of names that are none."""

from pathlib import Path

import pytest
import yaml
from tests.evaluation.harness.task_folder import QUESTIONS, pack, section, write_task

from retlab.errors import UserError
from retlab.evaluation.harness import task_names
from retlab.evaluation.harness.leaves import LeafManager
from retlab.evaluation.harness.local_files import task_sources
from retlab.evaluation.harness.task_names import Plan, plan_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pack(tmp_path / "pack", questions=3, documents=1)


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A folder in the place of the harness's own tasks; grows with every look at it."""
    own = tmp_path / "own"
    write_task(own, "own_one", tag="own_tag")
    write_task(own, "own_two", tag="own_tag")
    write_task(own, "local_mc", doc_to_text="not the user's")
    (own / "own_group.yaml").write_text(yaml.safe_dump({"group": "own_group", "task": ["own_one", "own_two"]}))
    looks: list[int] = []

    def look(_say: object) -> LeafManager:
        looks.append(1)
        return LeafManager(own, include_defaults=False)

    monkeypatch.setattr(task_names, "_defaults", look)
    return looks


def plan(folder: Path | None, *names: str) -> Plan:
    return plan_tasks(section(folder, *names).tasks)


def test_names_groups_and_patterns_are_single_tasks_each_once(folder: Path, defaults: list[int]) -> None:
    assert list(plan(folder, "local_wino", "local_mc").leaves) == ["local_wino", "local_mc"]
    assert list(plan(folder, "local_ppl", "local_choices", "local_mc").leaves) == [
        "local_ppl",
        "local_mc",
        "local_wino",
    ]
    found = plan(folder, "local_*")
    assert sorted(found.leaves) == ["local_mc", "local_ppl", "local_wino"]
    assert list(found.groups) == ["local_choices"]
    assert not defaults, "the user's own folder answers all names"


def test_all_is_the_users_and_the_harnesss_tasks_without_groups(folder: Path, defaults: list[int]) -> None:
    found = plan(folder, "*")
    assert sorted(found.leaves) == ["local_mc", "local_ppl", "local_wino", "own_one", "own_two"]
    assert found.leaves["local_mc"].settings["doc_to_text"] == "{{beginning}}", "the user's stands before the harness's"
    assert not found.groups
    assert not found.named
    assert plan(folder, "*", "own_two").named == {"own_two"}
    assert list(plan(None, "own_tag").leaves) == ["own_one", "own_two"]
    assert len(defaults) == 3


def test_a_group_of_the_user_may_hold_tasks_of_the_harness(folder: Path, defaults: list[int]) -> None:
    mixed = {"group": "mixed", "task": ["local_mc", {"task": "own_one", "num_fewshot": 3}]}
    (folder / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    found = plan(folder, "mixed")
    assert list(found.leaves) == ["local_mc", "own_one"]
    assert found.leaves["own_one"].settings["num_fewshot"] == 3
    assert len(defaults) == 1
    both = plan(folder, "own_one", "mixed")
    assert "num_fewshot" not in both.leaves["own_one"].settings
    assert both.notes == ["own_one comes up twice with different settings; it is measured as named first"]


@pytest.mark.usefixtures("defaults")
def test_names_that_are_none_are_told_with_the_nearest(folder: Path) -> None:
    (folder / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(UserError) as told:
        plan(folder, "local_mcc", "local_mc", "own_tw", "zzzzzz")
    sentence = str(told.value)
    assert "local_mcc (did you mean local_mc" in sentence
    assert "own_tw (did you mean own_two" in sentence
    assert "zzzzzz are no tasks or groups" in sentence
    assert "broken.yaml cannot be read" in sentence
    with pytest.raises(UserError, match=r"LOCAL_MC \(did you mean local_mc"):
        plan(folder, "LOCAL_MC")
    with pytest.raises(UserError, match=r"local_x\* \(did you mean local_\w+ .* is no task or group"):
        plan(folder, "local_x*")


@pytest.mark.usefixtures("defaults")
def test_a_group_that_is_wrong_is_refused_alone(folder: Path) -> None:
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"group": "wrong", "task": [{"neither": 1}]}))
    found = plan(folder, "wrong", "local_mc")
    assert list(found.leaves) == ["local_mc"]
    assert "must have 'task' or 'group' key" in found.refused["wrong"]


@pytest.mark.usefixtures("defaults")
def test_a_group_that_lists_what_there_is_not_is_refused_with_the_nearest(folder: Path) -> None:
    wrong = {"wrong": ["local_mc", "own_on"], "deep": ["local_mc", {"group": "inner", "task": [{"task": "own_on"}]}]}
    for name, members in wrong.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": members}))
    found = plan(folder, "wrong", "deep", "local_wino")
    assert list(found.leaves) == ["local_wino"]
    assert found.refused.keys() == wrong.keys()
    for why in found.refused.values():
        assert why.startswith("it lists own_on, which is no task or group (did you mean own_one or ")


def test_tasks_that_a_group_defines_itself_are_loaded_one_by_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    for name in ("there", "gone"):
        write_task(tmp_path / "tasks", name, data=QUESTIONS if name == "there" else None, generation_kwargs=None)
    defined = [yaml.safe_load(file.read_text()) for file in sorted((tmp_path / "tasks").glob("*.yaml"))]
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": defined}))
    leaves = plan(tmp_path / "groups", "g").leaves
    assert list(leaves) == ["g::gone", "g::there"]
    assert "".join(capfd.readouterr()) == "", "what lm-eval says when it loads a task"
    task = leaves["g::there"].load()
    assert (task.config.task, len(task.test_docs())) == ("g::there", 2)
    with pytest.raises(FileNotFoundError):
        leaves["g::gone"].load()


def test_the_harnesss_own_list_is_really_read() -> None:
    """Its files are many: only that the names are told apart is looked at here, in the folder of one of its tasks."""
    import lm_eval

    own = LeafManager(Path(lm_eval.__file__).parent / "tasks" / "arithmetic", include_defaults=False)
    assert {"arithmetic_1dc", "arithmetic_2da"} <= set(own.all_subtasks)
    leaf = own.load(["arithmetic_1dc"])["tasks"]["arithmetic_1dc"]
    assert leaf.remote
    assert leaf.settings["output_type"] == "loglikelihood"


def test_a_definition_is_settings_code_and_data(folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "pack", "asked", data=QUESTIONS)

    def now(name: str) -> str:
        return plan(folder, name).leaves[name].definition()

    before = {name: now(name) for name in ("local_wino", "local_mc", "asked")}
    file = folder / "asked.jsonl"
    file.write_text(QUESTIONS)
    assert {name: now(name) for name in before} == before, "the same content again"
    file.write_text(QUESTIONS.replace("dog", "fox"))
    assert now("asked") != before["asked"]
    assert now("local_mc") == before["local_mc"]
    code = folder / "gaps.py"
    code.write_text(code.read_text() + "\n")
    assert now("local_wino") != before["local_wino"]
    settings = folder / "local_mc.yaml"
    settings.write_text(settings.read_text().replace("{{beginning}}", "So: {{beginning}}"))
    assert now("local_mc") != before["local_mc"]


def test_sources_are_the_files_of_the_folder_and_the_data_that_they_name(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text(QUESTIONS)
    write_task(folder, "asked", dataset_kwargs={"data_files": {"test": str(elsewhere)}})
    tasks = section(folder, "asked").tasks
    before = task_sources(tasks)
    assert {Path(name).name for name in before["task_files"]} >= {"local_wino.yaml", "gaps.py", "elsewhere.jsonl"}
    elsewhere.write_text(QUESTIONS + QUESTIONS)
    assert task_sources(tasks) != before
    with pytest.raises(UserError, match=r"evaluate.tasks.include_path: .*nowhere is no folder"):
        task_sources(section(tmp_path / "nowhere", "x").tasks)
