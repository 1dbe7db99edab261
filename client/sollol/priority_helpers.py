"""Priorities by name, by an agent's role, and by a task."""

from __future__ import annotations

from sollol_broker.errors import InvalidJob
from sollol_broker.words import Priority

_ROLES = {
    "critical": 10,
    "user": 9,
    "interactive": 9,
    "researcher": 8,
    "coordinator": 8,
    "analyst": 7,
    "critic": 7,
    "planner": 7,
    "coder": 7,
    "editor": 6,
    "reviewer": 6,
    "writer": 6,
    "summarizer": 5,
    "assistant": 5,
    "translator": 5,
    "classifier": 4,
    "storage": 3,
    "background": 2,
    "batch": 1,
}
_TASKS = {
    "interactive": 9,
    "chat": 8,
    "analysis": 7,
    "generation": 6,
    "extraction": 6,
    "summarization": 5,
    "classification": 5,
    "translation": 5,
    "embedding": 4,
    "indexing": 3,
    "background": 2,
    "batch": 1,
}


class PriorityMapper:
    """Priorities by role and by task, with an application's own beside the usual ones. Names ignore case."""

    def __init__(self) -> None:
        self.roles = dict(_ROLES)
        self.tasks = dict(_TASKS)

    def get_priority_for_role(self, role: str, default: int = Priority.NORMAL) -> int:
        """A role's priority; `default` for one that is not known."""
        return self.roles.get(role.lower(), default)

    def get_priority_for_task(self, task_type: str, default: int = Priority.NORMAL) -> int:
        """A task's priority; `default` for one that is not known."""
        return self.tasks.get(task_type.lower(), default)

    def register_role_priority(self, role: str, priority: int) -> None:
        """Give a role a priority from now on; raises InvalidJob unless it is a whole number from 0 to 10."""
        self.roles[role.lower()] = _checked(priority)

    def register_task_priority(self, task_type: str, priority: int) -> None:
        """Give a task a priority from now on; raises InvalidJob unless it is a whole number from 0 to 10."""
        self.tasks[task_type.lower()] = _checked(priority)


def get_priority_for_role(role: str, default: int = Priority.NORMAL) -> int:
    """The priority of an agent's role: researcher 8, editor 6, summarizer 5, …; `default` for one that is not known."""
    return _usual.get_priority_for_role(role, default)


def get_priority_for_task(task_type: str, default: int = Priority.NORMAL) -> int:
    """The priority of a task: interactive 9, summarization 5, batch 1, …; `default` for one that is not known."""
    return _usual.get_priority_for_task(task_type, default)


def register_role_priority(role: str, priority: int) -> None:
    """Give a role a priority, for this process; raises InvalidJob unless it is a whole number from 0 to 10."""
    _usual.register_role_priority(role, priority)


def register_task_priority(task_type: str, priority: int) -> None:
    """Give a task a priority, for this process; raises InvalidJob unless it is a whole number from 0 to 10."""
    _usual.register_task_priority(task_type, priority)


def list_available_roles() -> list[str]:
    """The roles that have a priority, by name."""
    return sorted(_usual.roles)


def list_available_tasks() -> list[str]:
    """The tasks that have a priority, by name."""
    return sorted(_usual.tasks)


def explain_priority_system() -> str:
    """What priorities do, and which there are, as text for people."""
    names = ", ".join(f"{each.name} {each.value}" for each in Priority)
    return "\n".join(
        (
            "Priorities go from 0 to 10; 5 is usual. A higher one is a head start in the queue, not a band of its own:",
            "what waits long enough is served before what comes later, so nothing starves.",
            f"By name:  {names}",
            f"By role:  {_listed(_usual.roles)}",
            f"By task:  {_listed(_usual.tasks)}",
        )
    )


def _listed(priorities: dict[str, int]) -> str:
    ordered = sorted(priorities.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {priority}" for name, priority in ordered)


def _checked(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
        raise InvalidJob(
            f"priority: a whole number from 0 to 10 is needed, got {priority!r}", field="priority"
        )
    return priority


_usual = PriorityMapper()

__all__ = [
    "Priority",
    "PriorityMapper",
    "explain_priority_system",
    "get_priority_for_role",
    "get_priority_for_task",
    "list_available_roles",
    "list_available_tasks",
    "register_role_priority",
    "register_task_priority",
]
