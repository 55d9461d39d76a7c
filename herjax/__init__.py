"""Hindsight Experience Replay (Andrychowicz et al. 2017, arXiv:1707.01495) for JAX, inside the training loop.

The buffer is one immutable pytree, a `BufferState`. A function that writes to it returns the next state. The functions below
are pure, and work under `jit`, `vmap`, `scan` and `shard_map`. Before the loop, `init` makes the buffer:

    buffer = herjax.init(transition, capacity=100_000, max_episode_length=50, goal_fn=achieved, reward_fn=reward)

Each step of the loop then calls, in this order:

    buffer = herjax.add(buffer, transition)  # any pytree of arrays
    buffer = herjax.end_episode(buffer, goal, key_goals, done=done)  # the goal that was pursued
    batch = herjax.sample(buffer, key_sample, batch_size=64)  # a `Sample`; zeros until an episode has ended
    td_error = ...  # your update, its loss weighted by batch.weights
    buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(td_error))  # only with a priority_exponent

- `relabel` draws other goals for a batch. `steps` reads other steps of its episodes, as `Steps`. `episodes` brings each
  `Episode` that is held whole to the host.
- `size` and `can_sample` say what the buffer holds. `check`, outside of the loop, says whether a state is sound.
- `discard` drops a running episode. `after` and `in_all_runs` keep some loops from copying the buffer.
- `geometric` and `mixture` make strategies, besides "future", "final", "episode" and "random".
- `herjax.envs` has environments, `herjax.checkpoints` saves training states. `__version__` is the version.

Where to begin: every option is explained in `help(herjax.init)`. The help of each function has an example that runs as it is
printed. The README has a whole training loop. Modules besides `envs` and `checkpoints` are private.
"""

from importlib import import_module
from types import ModuleType

from herjax.adding import add
from herjax.batches import Sample
from herjax.buffer import init
from herjax.ending import discard, end_episode
from herjax.episodes import Episode, episodes
from herjax.invariants import check
from herjax.lanes import in_all_runs
from herjax.prioritized import update_priorities
from herjax.relabelling import relabel
from herjax.sampling import sample
from herjax.state import BufferState, after, can_sample, size
from herjax.steps import Steps, steps
from herjax.strategies import geometric, mixture
from herjax.version import __version__


def __getattr__(name: str) -> ModuleType:
    """`herjax.envs` and `herjax.checkpoints` are imported when they are asked for: gymnax and orbax take their time."""
    if name in ("checkpoints", "envs"):
        return import_module(f"herjax.{name}")
    raise AttributeError(f"module 'herjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names. `envs` and `checkpoints` once they are imported: `help` imports all that is listed."""
    return sorted({*__all__, *({"checkpoints", "envs"} & globals().keys())})


__all__ = [
    "BufferState",
    "Episode",
    "Sample",
    "Steps",
    "__version__",
    "add",
    "after",
    "can_sample",
    "check",
    "discard",
    "end_episode",
    "episodes",
    "geometric",
    "in_all_runs",
    "init",
    "mixture",
    "relabel",
    "sample",
    "size",
    "steps",
    "update_priorities",
]
