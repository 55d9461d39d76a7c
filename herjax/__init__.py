"""herjax: Hindsight Experience Replay inside the training loop. One immutable state, and pure jitted functions."""

from herjax.buffer import add, discard, end_episode, init
from herjax.invariants import check
from herjax.prioritized import update_priorities
from herjax.relabel import geometric, mixture
from herjax.sampling import Sample, sample
from herjax.state import BufferState, after, can_sample, size
from herjax.version import __version__

__all__ = [
    "BufferState",
    "Sample",
    "__version__",
    "add",
    "after",
    "can_sample",
    "check",
    "discard",
    "end_episode",
    "geometric",
    "init",
    "mixture",
    "sample",
    "size",
    "update_priorities",
]
