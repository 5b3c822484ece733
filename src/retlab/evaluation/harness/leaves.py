"""Tasks as lm-eval's task manager finds them, whose data are loaded one task at a time and only when it is its turn."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind

from retlab.artifacts import sha256_file
from retlab.evaluation.harness.local_files import data_files, remote_data

_HARNESS = Path(lm_eval.__file__).parent


class Leaf(ConfigurableTask):
    """A task in the place where its group holds it, with the settings that the group gives it, but without data."""

    def __init__(self, entry: Entry, overrides: dict[str, Any] | None) -> None:
        self._entry, self._overrides = entry, overrides or {}
        self._config = SimpleNamespace(task=self._overrides.get("task", entry.name))

    @property
    def name(self) -> str:
        """What its results are called."""
        return str(self._config.task)

    @property
    def settings(self) -> dict[str, Any]:
        """Its configuration as its file and its groups give it; functions are given by their names."""
        return {**(self._entry.cfg or {}), **self._overrides}

    @property
    def remote(self) -> bool:
        """Whether its data come from elsewhere."""
        return remote_data(self.settings)

    def load(self) -> Task:
        """The task with its data; raises whatever lm-eval, `datasets` or the task's own code does."""
        return TaskFactory().build(self._entry, overrides=self._overrides or None, registry={})

    def definition(self) -> str:
        """A hash of all that is known to decide the task's questions: settings, code, and data of this machine."""
        file = self._entry.yaml_path
        parts: list[Any] = [lm_eval.__version__, self.settings]
        if file is not None and not file.is_relative_to(_HARNESS):
            parts += [sha256_file(code) for code in sorted(file.parent.glob("*.py"))]
        parts += [sha256_file(data) for data in sorted(set(data_files(self.settings)))]
        text = json.dumps(parts, sort_keys=True, default=_by_name)
        return hashlib.sha256(text.encode()).hexdigest()


def _by_name(value: Any) -> str:
    """A value that is no JSON, without the place in memory that the text of a function tells."""
    return getattr(value, "__qualname__", None) or str(value)


def nearest(name: str, names: Iterable[str]) -> str:
    """In parentheses the names that may have been meant, to be put behind one that there is not."""
    folded = {one.casefold(): one for one in names}
    close = difflib.get_close_matches(re.sub(r"[*?[\]]", "", name).casefold(), folded, n=3)
    return f" (did you mean {' or '.join(folded[one] for one in close)}?)" if close else ""


_OF_ITS_OWN = {"dataset_path", "custom_dataset", "class", "include"}
"""Keys of which a task has one that a group defines itself, and does not only name."""


class _LeafFactory(TaskFactory):
    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Leaf:
        return Leaf(entry, overrides)

    def _build_group_members(
        self,
        member_list: list[str | dict[str, Any]],
        group_name: str,
        overrides: dict[str, Any] | None,
        registry: dict[str, Entry],
    ) -> list[Task | Group]:
        """Make leaves also of the tasks that a group defines itself, which lm-eval would load at once."""
        members, known = [], dict(registry)
        for member in member_list:
            settings = {**(overrides or {}), **(member if isinstance(member, dict) else {"task": member})}
            name = settings.get("task")
            if isinstance(name, str) and name not in known:
                if not _OF_ITS_OWN & settings.keys():
                    raise ValueError(f"it lists {name}, which is no task or group{nearest(name, known)}")
                # The name that lm-eval gives it.
                name = f"{group_name}::{name}"
                member = settings | {"task": name}
                known[name] = Entry(name, Kind.TASK, None, member)
            members.append(member)
        return super()._build_group_members(members, group_name, overrides, known)


class LeafManager(TaskManager):
    """lm-eval's task manager, which gives leaves for tasks."""

    def __init__(self, include_path: Path | None, include_defaults: bool) -> None:
        super().__init__(include_path=include_path, include_defaults=include_defaults)
        self._factory = _LeafFactory()

    def over(self, other: "LeafManager") -> "LeafManager":
        """A manager of the other's tasks and of these, which stand before others of the same name."""
        both = LeafManager(None, include_defaults=False)
        both._index = {**other._index, **self._index}
        return both
