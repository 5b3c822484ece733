"""`evaluate.tasks.names`: names, groups, patterns and '*' as single tasks, through lm-eval's own task manager."""

import contextlib
import functools
import glob
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks._index import Kind

from retlab.errors import UserError, one_line
from retlab.evaluation.harness.leaves import Leaf, LeafManager, nearest
from retlab.evaluation.settings import TasksSection
from retlab.section import shown_path

ALL = "*"
Say = Callable[[str], None]


@dataclass
class Plan:
    """The tasks that a list of names stands for, each once, in the order of the names."""

    leaves: dict[str, Leaf] = field(default_factory=dict)
    "By name."
    groups: dict[str, Group] = field(default_factory=dict)
    "Groups that were named, and those inside them; their tasks are leaves."
    named: set[str] = field(default_factory=set)
    "Tasks that the user asked for by name, group or pattern, and not only by '*'."
    refused: dict[str, str] = field(default_factory=dict)
    "Named groups that cannot be expanded, each with the reason."
    notes: list[str] = field(default_factory=list)
    "What the user should know of the list, in sentences."

    def add(self, loaded: dict[str, Any], by_name: bool) -> None:
        """Take what the task manager loaded for one name; a task that is there already stays what it is."""
        for name, leaf in loaded["tasks"].items():
            first = self.leaves.setdefault(name, leaf)
            if by_name:
                self.named.add(name)
            if first.settings != leaf.settings:
                self.notes.append(f"{name} comes up twice with different settings; it is measured as named first")
        if by_name:
            self.groups |= loaded.get("groups", {})


def plan_tasks(section: TasksSection, say: Say = lambda _line: None) -> Plan:
    """Expand the names of a section.

    Names that tasks of `include_path` answer alone are looked up there alone, since to read the files of all tasks of
    the harness takes half a minute; '*' is all of both.

    Raises:
        UserError: names that stand for nothing, with the nearest that there are.
    """
    unreadable: list[str] = []
    with _unreadable_files(unreadable):
        manager = LeafManager(section.include_path, include_defaults=False)
    own = set(manager.task_index)
    if not all(_answers(manager, name) for name in section.names):
        manager = manager.over(_defaults(say))
    names = list(manager.task_index)
    unknown = [name for name in section.names if not _matches(name, names)]
    if unknown:
        raise UserError(_unknown(unknown, names, unreadable))
    # What is the user's own comes first of all.
    names.sort(key=lambda name: (name not in own, name))
    plan = Plan(notes=[f"{line}; its tasks are left out" for line in unreadable])
    for wanted in section.names:
        for name in _matches(wanted, names):
            _expand(plan, manager, name, by_name=wanted != ALL)
    return plan


def _expand(plan: Plan, manager: LeafManager, name: str, by_name: bool) -> None:
    # '*' is every task once: no groups, which hold them again.
    if not by_name and manager.task_index[name].kind not in (Kind.TASK, Kind.PY_TASK):
        return
    try:
        loaded = manager.load([name])
    except Exception as error:
        # A group of the user's own may be wrong in any way.
        plan.refused[name] = reason(error)
        return
    plan.add(dict(loaded), by_name)


def reason(error: BaseException) -> str:
    """Why something cannot be had, on one line."""
    text = one_line(error)
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@functools.cache
def _scan() -> LeafManager:
    return LeafManager(None, include_defaults=True)


def _defaults(say: Say) -> LeafManager:
    """The tasks of the harness itself; read once, as they do not change while it is installed."""
    if not _scan.cache_info().currsize:
        say("reading the list of lm-eval's own tasks (about half a minute)")
    return _scan()


def _matches(name: str, names: Iterable[str]) -> list[str]:
    if not glob.has_magic(name):
        return [name] if name in names else []
    return [found for found in names if fnmatchcase(found, name)]


def _answers(manager: LeafManager, name: str) -> bool:
    """Whether a name stands for tasks of this manager alone."""
    index = manager.task_index
    if name == ALL:
        return False
    if name not in index:
        found = _matches(name, index)
        return bool(found) and all(_answers(manager, one) for one in found)
    entry = index[name]
    if entry.kind is not Kind.GROUP:
        return True
    members = (entry.cfg or {}).get("task") or []
    return not isinstance(members, list) or all(_is_here(manager, member) for member in members)


def _is_here(manager: LeafManager, member: Any) -> bool:
    if isinstance(member, str):
        return member in manager.task_index and _answers(manager, member)
    if not isinstance(member, dict) or "dataset_path" in member:
        # What is no such entry is refused by lm-eval; a whole task inside a group needs no other.
        return True
    inner = member.get("task")
    if isinstance(inner, list):
        return all(_is_here(manager, one) for one in inner)
    return _is_here(manager, member.get("group", inner))


def _unknown(unknown: list[str], names: list[str], unreadable: list[str]) -> str:
    parts = [f"{name}{nearest(name, names)}" for name in unknown]
    what = "is no task or group" if len(unknown) == 1 else "are no tasks or groups"
    also = f"; {'; '.join(unreadable)}" if unreadable else ""
    return f"evaluate.tasks.names: {', '.join(parts)} {what} of lm-eval or of evaluate.tasks.include_path{also}"


@contextlib.contextmanager
def _unreadable_files(found: list[str]) -> Iterator[None]:
    """Collect the task files that lm-eval passes over without a word to its user."""
    logger = logging.getLogger("lm_eval.tasks._index")

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and len(record.args) == 2 and isinstance(record.args[0], Path):
                file, error = record.args
                # Settings that task files share are files, too.
                if not str(error).startswith("Unknown config shape"):
                    found.append(f"{shown_path(file)} cannot be read ({reason(error)})")  # type: ignore[arg-type]
            elif record.levelno >= logging.WARNING:
                found.append(" ".join(record.getMessage().split()))

    handler, level, spreads = Collector(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = spreads
