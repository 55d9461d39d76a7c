"""What a hindsight buffer holds, as a plain list of episodes: no rows, no ring, no JAX."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

Distribution = Callable[[int, int], np.ndarray]
"""`(step, length) -> chances`: of each step of an episode, to be the one whose achieved goal is taken for `step`."""


@dataclass(frozen=True)
class Episode:
    """A finished episode: the goal it pursued, and the ids of its transitions in order."""

    goal: int
    transitions: tuple[int, ...]
    held: tuple[int, ...]
    """What was held when it ended, itself included: the goal sources of the strategy random."""

    def goal_chances(self, transition: int, weights: Mapping[Distribution | None, float]) -> Counter[int]:
        """By transition whose achieved goal may be a hindsight goal of this one: how likely it is.

        A mixture's weights are by the distribution of each of its sources; None is random.
        """
        step, found = self.transitions.index(transition), Counter[int]()
        for distribution, weight in weights.items():
            share = weight / sum(weights.values())
            if distribution is None:
                found.update(dict.fromkeys(self.held, share / len(self.held)))
            else:
                chances = _chances(distribution, step, len(self.transitions))
                found.update({self.transitions[other]: share * chance for other, chance in chances.items()})
        return found

    def window(self, transition: int, goal: int, num_steps: int) -> tuple[int, ...]:
        """The transitions whose rewards a copy adds up: it ends with the episode, and with the one that reaches `goal`."""
        begin = self.transitions.index(transition)
        window = self.transitions[begin : begin + num_steps]
        return window[: window.index(goal) + 1] if goal in window else window


@cache
def _chances(distribution: Distribution, step: int, length: int) -> dict[int, float]:
    """The steps that are possible, and how likely each is."""
    return {other: chance for other, chance in enumerate(distribution(step, length).tolist()) if chance > 0}


@dataclass
class Oracle:
    """Every transition that ever finished, in order, of which the newest are held.

    In a full buffer each transition of the running episode takes the place of the oldest. With `next_of` an episode takes one
    place more than it has transitions, from its end on, until none of these is held; this is seen when the next one ends.
    """

    capacity: int
    max_episode_length: int
    next_of: bool = False
    episodes: list[Episode] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    """The ids of all transitions that ever finished, oldest first."""
    num_held: int = 0
    num_lasts: int = 0
    """Episodes held when one last ended: each takes a place for its last observation."""
    num_dropped: int = 0

    def add(self, transition: int) -> None:
        """Append to the running episode, or drop what is past its greatest length."""
        if len(self.pending) == self.max_episode_length:
            self.num_dropped += 1
            return
        self.pending.append(transition)
        self.make_room()

    def end_episode(self, goal: int, *, done: bool = True) -> None:
        """End the running episode, where there is one and it is done."""
        if done and self.pending:
            self.finished += self.pending
            self.num_held += len(self.pending)
            self.episodes.append(Episode(goal, tuple(self.pending), tuple(self.held)))
            self.pending = []
            held = set(self.held)
            self.num_lasts = sum(episode.transitions[-1] in held for episode in self.episodes[-self.capacity :])
            self.make_room()

    def discard(self) -> None:
        """Forget the running episode. What it made room for stays gone."""
        self.pending = []

    def make_room(self) -> None:
        """Let the oldest go while there is more than fits."""
        while self.places_taken > self.capacity:
            self.num_held -= 1

    @property
    def places_taken(self) -> int:
        """Of the capacity; as far as lasts are known, of which there are at most as many as transitions held."""
        return self.num_held + len(self.pending) + self.next_of * min(self.num_lasts, self.num_held)

    @property
    def held(self) -> list[int]:
        """The newest finished transitions, oldest first."""
        return self.finished[len(self.finished) - self.num_held :]
