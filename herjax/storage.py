"""What is stored of a transition: a row of its own, and fields that it shares with the step before or after it (`next_of`)."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from herjax.functions import Transition
from herjax.rows import Layout, Leaf

Words: TypeAlias = tuple[jax.Array, ...]
"""A transition as it is stored: its row, uint32 [words]; with `next_of` also its observation and the next one, likewise."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a transition is stored. Static.

    Without `next_of`, a row is the whole transition. With it, fields that two steps share are an observation, which is stored
    once, and a row holds where its step's observation lies, and the other fields. Leaves are named by their numbers.
    """

    transition: Layout
    row: Layout
    observation: Layout | None = None
    alone: tuple[int, ...] = ()  # Leaves that are not shared.
    now: tuple[int, ...] = ()  # Leaves of the observation.
    later: tuple[int, ...] = ()  # Each is the next of one of `now`, in the same order.

    @classmethod
    def of(cls, transition: Layout, next_of: tuple[tuple[Hashable, Hashable], ...]) -> "Storage":
        """The storage of a transition, of whose fields each pair has a field and the one that it is the next of."""
        if not next_of:
            return cls(transition, transition)
        fields = _fields(transition)
        now = tuple(leaf for _, field in next_of for leaf in fields[field])
        later = tuple(leaf for field, _ in next_of for leaf in fields[field])
        alone = tuple(leaf for leaf in range(len(transition.leaves)) if leaf not in now + later)
        structs = jax.tree.leaves(transition.struct())
        row = Layout.of("row", (jax.ShapeDtypeStruct((), jnp.int32), [structs[leaf] for leaf in alone]))
        return cls(transition, row, Layout.of("observation", [structs[leaf] for leaf in now]), alone, now, later)

    def pack(self, transition: Transition, place: jax.Array) -> Words:
        """A transition as it is stored; `place`, int32 [], is where its observation is to lie."""
        if self.observation is None:
            return (self.row.pack(transition),)
        leaves = jax.tree.leaves(transition)
        alone, now, later = ([leaves[leaf] for leaf in part] for part in (self.alone, self.now, self.later))
        return self.row.pack((place, alone)), self.observation.pack(now), self.observation.pack(later)

    def unpack(self, words: Words) -> Transition:
        """The transition that `pack` was given."""
        row, *observations = words
        if self.observation is None:
            return self.row.unpack(row)
        _, alone = self.row.unpack(row)
        now, later = map(self.observation.unpack, observations)
        leaves = dict(zip(self.alone + self.now + self.later, alone + now + later, strict=True))
        return self.transition.treedef.unflatten([leaves[leaf] for leaf in range(len(leaves))])


def next_pairs(transition: Layout, next_of: Mapping[Any, Any] | None) -> tuple[tuple[Hashable, Hashable], ...] | None:
    """The fields of `next_of`, each with the one that it is the next of; None if there are none. Raises as `init` does."""
    if next_of is None:
        return None
    if not isinstance(next_of, Mapping):
        raise TypeError(f"next_of is {next_of!r}; give a dict, such as {{'next_observation': 'observation'}}.")
    fields = _fields(transition)
    for name in (*next_of, *next_of.values()):
        if name not in fields:
            there = f"its fields with arrays are {', '.join(map(repr, fields))}" if fields else "it has no fields"
            raise ValueError(f"next_of names {name!r}, which is no field of the transition: {there}; name two of its fields.")
    for later, now in next_of.items():
        if now in next_of:
            raise ValueError(
                f"next_of names {now!r} as a next field, and as the one that {later!r} is the next of; give pairs."
            )
        if twins := [other for other in next_of if next_of[other] == now and other != later]:
            raise ValueError(f"next_of has two fields, {later!r} and {twins[0]!r}, as the next of {now!r}; give one.")
        _check_alike(transition, later, now, fields)
    return tuple(sorted(next_of.items(), key=lambda pair: fields[pair[1]].start)) or None


def _check_alike(transition: Layout, later: Hashable, now: Hashable, fields: dict[Hashable, range]) -> None:
    """Raises unless both fields have one structure, and leaves of the same shapes and dtypes."""
    nodes = dict(zip(fields, (node for node in transition.treedef.children() if node.num_leaves), strict=True))
    if nodes[later] != nodes[now]:
        raise ValueError(
            f"next_of: {later!r} has the structure {nodes[later]}, and {now!r} has {nodes[now]}; give fields of one structure."
        )
    for pair in zip(fields[later], fields[now], strict=True):
        first, second = (transition.leaves[leaf] for leaf in pair)
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            raise ValueError(
                f"next_of: {_shown(first)}, and {_shown(second)}; give fields whose arrays have the same shapes and dtypes."
            )


def _shown(leaf: Leaf) -> str:
    return f"{leaf.path} is {leaf.dtype}{list(leaf.shape)}"


def _fields(transition: Layout) -> dict[Hashable, range]:
    """The numbers of the leaves of each field of a transition that has any, by its key or name."""
    fields: dict[Hashable, range] = {}
    paths, _ = jax.tree_util.tree_flatten_with_path(transition.struct())
    for number, (path, _) in enumerate(paths):
        if not path:
            return {}
        names = (getattr(path[0], kind) for kind in ("key", "name", "idx") if hasattr(path[0], kind))
        name = next(names, path[0])
        fields[name] = range(fields.get(name, range(number, number)).start, number + 1)
    return fields
