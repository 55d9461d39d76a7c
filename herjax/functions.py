"""The user's functions, and what they are given."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import CodeType, MethodType
from typing import Any, TypeAlias

import jax

from herjax.rows import Pytree

Transition: TypeAlias = Pytree
Goal: TypeAlias = Pytree

GoalFn: TypeAlias = Callable[[Transition], Goal]
RewardFn: TypeAlias = Callable[[Transition, Goal], jax.Array]
TerminatedFn: TypeAlias = Callable[[Transition, Goal], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A user's function. Compares by identity: two that are equal by `==` may do different things."""

    call: Callable[..., Any]

    @property
    def _identity(self) -> tuple[int, ...]:
        """A bound method is made anew each time it is asked for, so its object and its function count."""
        if type(self.call) is MethodType:  # Not merely one that passes its attributes on.
            return id(self.call.__self__), id(self.call.__func__)
        return (id(self.call),)

    @property
    def name(self) -> str:
        """What it is called, the same in every process; of an object without a name, what it says of itself."""
        name = getattr(self.call, "__qualname__", None)
        return name if isinstance(name, str) else repr(self.call)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same function."""
        return isinstance(other, Function) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __str__(self) -> str:
        """Its name."""
        return self.name

    def __repr__(self) -> str:
        """Its name, where it was defined, and what tells it from another of that name and place."""
        code = getattr(getattr(self.call, "__func__", self.call), "__code__", None)
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno} " if isinstance(code, CodeType) else ""
        name = getattr(self.call, "__qualname__", None)
        name = name if isinstance(name, str) else type(self.call).__qualname__
        return f"{name} ({place}at {'+'.join(map(hex, self._identity))})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Function":
        """The same function: states that hold it still fit together."""
        return self

    def __call__(self, *arguments: Pytree) -> Any:
        """Calls it."""
        return self.call(*arguments)
