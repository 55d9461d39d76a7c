"""herjax: Hindsight Experience Replay inside the training loop. One immutable state, and pure jitted functions."""

from herjax.buffer import Sample, add, end_episode, sample
from herjax.invariants import check
from herjax.prioritized import update_priorities
from herjax.relabel import geometric
from herjax.state import BufferState, can_sample, init, size
from herjax.version import __version__

__all__ = [
    "BufferState",
    "Sample",
    "__version__",
    "add",
    "can_sample",
    "check",
    "end_episode",
    "geometric",
    "init",
    "sample",
    "size",
    "update_priorities",
]
