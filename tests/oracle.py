"""What a hindsight buffer holds, as a plain list of episodes: no rows, no ring, no JAX."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Episode:
    """A finished episode: the goal it pursued, and the ids of its transitions in order."""

    goal: int
    transitions: tuple[int, ...]


@dataclass
class Oracle:
    """Every transition that ever finished, in order; the buffer's size says how many of the newest are held.

    The contract leaves the size some room, `size_bounds`; given the size, what is held is exact.
    """

    capacity: int
    max_episode_length: int
    episodes: list[Episode] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    num_dropped: int = 0
    num_gone: int = 0
    """Finished transitions seen to have made room: they never come back."""
    sources: dict[int, frozenset[int]] = field(default_factory=dict)
    """By episode (its position in `episodes`): what was held when it ended, the goal sources of the strategy random."""

    def add(self, transition: int) -> None:
        """Append to the running episode, or drop what is past its greatest length."""
        if len(self.pending) == self.max_episode_length:
            self.num_dropped += 1
        else:
            self.pending.append(transition)

    def end_episode(self, goal: int, *, done: bool = True) -> None:
        """End the running episode, where there is one and it is done."""
        if done and self.pending:
            self.episodes.append(Episode(goal, tuple(self.pending)))
            self.pending = []

    @property
    def finished(self) -> list[int]:
        """The ids of all transitions that ever finished, oldest first."""
        return [transition for episode in self.episodes for transition in episode.transitions]

    def size_bounds(self) -> tuple[int, int]:
        """The least and the most finished transitions that may be held now."""
        num_finished = len(self.finished)
        most = min(self.capacity, num_finished - self.num_gone)
        if num_finished + len(self.pending) <= self.capacity:
            return num_finished, most
        least = min(num_finished, self.capacity - self.max_episode_length)
        if not self.pending:
            least = max(least, len(self.episodes[-1].transitions))
        return least, most

    def observe_size(self, size: int) -> None:
        """Assert that the buffer's size is allowed, and remember what has made room."""
        least, most = self.size_bounds()
        assert least <= size <= most, f"size {size} outside [{least}, {most}]"
        self.num_gone = len(self.finished) - size
        if self.episodes and len(self.episodes) - 1 not in self.sources:
            self.sources[len(self.episodes) - 1] = frozenset(self.held(size))

    def held(self, size: int) -> list[int]:
        """The `size` newest finished transitions, oldest first."""
        finished = self.finished
        return finished[len(finished) - size :]

    def episode_of(self) -> dict[int, int]:
        """The episode (its position in `episodes`) of each finished transition."""
        return {transition: e for e, episode in enumerate(self.episodes) for transition in episode.transitions}

    def goal_sources(self, transition: int, strategy: str) -> frozenset[int]:
        """The transitions whose achieved goals may be hindsight goals of `transition`."""
        e = self.episode_of()[transition]
        steps = self.episodes[e].transitions
        match strategy:
            case "final":
                return frozenset(steps[-1:])
            case "future":
                return frozenset(steps[steps.index(transition) :])
            case "episode":
                return frozenset(steps)
            case "past":
                return frozenset(steps[: steps.index(transition) + 1])
            case "random":
                return self.sources[e]
        raise ValueError(strategy)
