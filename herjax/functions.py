"""The user's functions, and what they are given."""

import dataclasses
from collections.abc import Callable
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
        owner, function = getattr(self.call, "__self__", None), getattr(self.call, "__func__", None)
        return (id(self.call),) if function is None else (id(owner), id(function))

    def __eq__(self, other: object) -> bool:
        """Whether it is the same function."""
        return isinstance(other, Function) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        """Its name."""
        return getattr(self.call, "__qualname__", None) or repr(self.call)

    def __call__(self, *arguments: Pytree) -> Any:
        """Calls it."""
        return self.call(*arguments)
