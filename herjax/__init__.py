"""herjax: Hindsight Experience Replay inside the training loop. One immutable state, and pure jitted functions."""

from herjax.buffer import (
    BufferState,
    Sample,
    add,
    can_sample,
    end_episode,
    init,
    sample,
    size,
    update_priorities,
)
from herjax.relabel import geometric

__all__ = [
    "BufferState",
    "Sample",
    "add",
    "can_sample",
    "end_episode",
    "geometric",
    "init",
    "sample",
    "size",
    "update_priorities",
]

__version__ = "0.1.0"
