"""The state of a buffer, and where its rows lie.

Each environment has a ring of `rows_per_env` rows. The rings lie one after another. A ring holds, oldest first, and going on at
its start when it comes to its end:

    [head - held, head)        finished transitions
    [head, head + pending)     the running episode
    the rest                   free rows

The running episode makes room for itself as it grows: in a full ring each of its transitions takes the place of the oldest.
With `sample_running` its transitions are sampled like finished ones.

A row holds one transition, and has `num_copies` indices: copy `c` of row `r` has the index `r * num_copies + c`. With
`relabel="episode_end"` an index stores a goal, and the reward and termination under it; copy 0 has the goal that the episode
pursued, the others have hindsight goals. With `relabel="sample"` a row has one index, which stores the pursued goal. Each index
has a priority. And each row has a place: its step, and its episode's length.

With `next_of`, a row says where its observation lies, which has a ring of its own: see `Observations`.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import sum_tree
from herjax.config import TRACED, Config
from herjax.lanes import seen
from herjax.rows import INT32_MAX, Pytree


class Observations(NamedTuple):
    """Where the rows of columns lie that two steps share: in a second ring of each environment, one row longer than the first.

    An episode of T transitions takes T + 1 rows of it. The last holds what came after the last step. Row 0, before the rings,
    is nobody's, and stays 0. The first word of each transition's own row says which row its observation has.
    """

    head: jax.Array  # int32 [n]; where in this ring the running episode begins.
    episodes: jax.Array  # int32 [n]; finished episodes of which a transition was held when one last ended.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BufferState:
    """The state of one buffer: a pytree, made by `init` and by the functions that take one.

    Only two of its fields are meant to be read by users, both counters, int32 []: `num_dropped`, the transitions past
    `max_episode_length`, which were not stored; and `num_rejected`, the priorities that `update_priorities` did not accept.

    In the comments on the fields, R is `config.num_rows`, K is `config.num_copies`, n is `config.envs`. Row R is nobody's and
    stays 0: zeros are written there where there is nothing to write.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> achieved, reward = lambda t: t, lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> start = lambda _: herjax.init(jnp.zeros(()), capacity=8, max_episode_length=4, goal_fn=achieved, reward_fn=reward)
      >>> buffers = jax.vmap(start)(jnp.arange(3))  # One for each of three seeds.
      >>> isinstance(buffers, herjax.BufferState), buffers.num_dropped.tolist()
      (True, [0, 0, 0])
    """

    columns: tuple[jax.Array, ...]  # Each of `config.storage.columns`: [rows * words], of R + 1 rows, or of the second ring's.
    observations: Observations | None  # Where what two steps share is, with `next_of`.
    places: jax.Array  # R + 1 rows of `config.place`, likewise: int [2] each, the step and the length of its episode.
    copies: jax.Array  # (R + 1) * K rows of `config.stored`, likewise.
    tree: sum_tree.SumTree | None  # Priorities of the (R + 1) * K indices, 0 where nothing finished is held; None: uniform.
    max_priority: jax.Array  # float32 []; the largest accepted priority so far.
    head: jax.Array  # int32 [n]; where in its ring the running episode begins.
    held: jax.Array  # int32 [n]; finished transitions.
    pending: jax.Array  # int32 [n]; transitions of the running episode.
    num_dropped: jax.Array  # int32 []; transitions past `max_episode_length`, not stored.
    num_rejected: jax.Array  # int32 []; priorities not accepted.
    numbers: dict[str, jax.Array]  # float32 [] each; the settings that `init` was given as arrays, by name.
    config: Config = dataclasses.field(metadata={"static": True})

    @property
    def drawable(self) -> jax.Array:
        """Transitions of each environment that can be drawn: int32 [n]; the finished ones, and maybe the running ones."""
        return self.held + self.pending if self.config.sample_running else self.held

    @property
    def newest(self) -> jax.Array:
        """Where those end: int32 [n]; an offset in the ring, not wrapped."""
        return self.head + self.pending if self.config.sample_running else self.head

    def number(self, name: str) -> jax.Array | float:
        """The setting of that name, one of `NUMBERS`: a float where it is static, else float32 []; 0 for None."""
        value = getattr(self.config, name)
        return self.numbers[name] if value == TRACED else value or 0.0


def empty(config: Config, numbers: dict[str, jax.Array]) -> BufferState:
    """An empty buffer with these settings, and with these in place of `TRACED` ones."""
    num_rows = config.num_rows + 1  # The last holds nothing: what is to be dropped is written there.
    per_env = partial(jnp.zeros, config.envs, jnp.int32)

    def scalar(value: int, dtype: jnp.dtype) -> jax.Array:
        # Taken from an array, since JAX forgets the mesh of a constant: scan would refuse it as a carry over an Explicit axis.
        return jnp.full(1, value, dtype)[0]

    columns = ((column.layout, config.num_observations + 1 if column.later else num_rows) for column in config.storage.columns)
    return BufferState(
        columns=tuple(layout.zeros(rows) for layout, rows in columns),
        observations=None if config.next_of is None else Observations(per_env(), per_env()),
        places=config.place.zeros(num_rows),
        copies=config.stored.zeros(num_rows * config.num_copies),
        tree=None if config.priority_exponent is None else sum_tree.init(num_rows * config.num_copies),
        max_priority=scalar(1, jnp.float32),
        head=per_env(),  # Arrays of their own, so that the state can be donated.
        held=per_env(),
        pending=per_env(),
        num_dropped=scalar(0, jnp.int32),
        num_rejected=scalar(0, jnp.int32),
        numbers=numbers,
        config=config,
    )


def config_of(state: BufferState, *, one_run: bool = True) -> Config:
    """A state's settings. `TypeError` where it is none; `ValueError` where it is of many runs, or of 64 bits and JAX of 32."""
    if not isinstance(state, BufferState):
        raise TypeError(f"state is a {type(state).__name__}; give, first, the BufferState that init or the last call returned.")
    if one_run and (runs := jnp.shape(state.num_dropped)):
        raise ValueError(
            f"state is that of {' x '.join(map(str, runs))} runs; call this under jax.vmap, which gives it one of them, "
            "or give one, such as jax.tree.map(lambda leaf: leaf[0], state)."
        )
    for leaf in state.config.leaves:
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(
                f"state was made with 64-bit numbers enabled: {leaf.path} is {leaf.dtype}; enable them here too, by "
                "jax_enable_x64, or give init an example of 32 bits."
            )
    return state.config


@jax.jit
def can_sample(state: BufferState) -> jax.Array:
    """Whether a transition is held that `sample` can draw: of a finished episode, or, with `sample_running`, of any.

    For a `lax.cond` under `vmap` ask `herjax.in_all_runs(herjax.can_sample(buffer))`: JAX takes both
    branches of one that differs by run.

    Once True, it stays True while `capacity` is above `max_episode_length`, for each environment, with `next_of` by at least 2.
    Else a running episode of full length takes the place of all that was held.

    Args:
      state: the buffer.

    Returns:
      bool []: whether `size` is above 0. With `num_envs`, one environment's episode is enough.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.add(buffer, jnp.float32(3))
      >>> bool(herjax.can_sample(buffer))  # The episode still runs.
      False
      >>> bool(herjax.can_sample(herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))))
      True
    """
    there: jax.Array = size(state) > 0
    return there


@jax.jit
def size(state: BufferState) -> jax.Array:
    """The number of finished transitions held: neither their copies nor the running episode count.

    With `sample_running` the running episode counts, too.

    Args:
      state: the buffer.

    Returns:
      int32 [], in `0 .. capacity`; of all environments together.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(3)), jnp.float32(4))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> int(herjax.size(buffer)), int(herjax.size(herjax.add(buffer, jnp.float32(1))))
      (2, 2)
    """
    config_of(state)
    return jnp.sum(state.drawable, dtype=jnp.int32)


@jax.jit
def after(state: BufferState, values: Pytree) -> BufferState:
    """The same state, bit for bit, but what is written to it comes after `values` have been computed.

    XLA copies a whole buffer where it cannot tell that a read comes before a write. A loop that samples, and then adds what
    does not depend on the batch, says `state = herjax.after(state, batch)` in between. `update_priorities` does it by itself.

    Args:
      state: the buffer.
      values: a pytree of arrays, such as a batch; any shapes and dtypes.

    Returns:
      The same state.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> batch = herjax.sample(buffer, jax.random.key(0), 64)
      >>> later = herjax.after(buffer, batch)  # Say it here, between `sample` and `add`.
      >>> all(jax.tree.leaves(jax.tree.map(jnp.array_equal, later, buffer)))
      True
    """
    config_of(state)
    # Every place written to is counted from a head. `held` is never negative, but XLA does not know.
    later, observations = seen(values), state.observations
    if observations is not None:
        observations = observations._replace(head=jnp.where(state.held >= 0, observations.head, later))
    return dataclasses.replace(state, head=jnp.where(state.held >= 0, state.head, later), observations=observations)


def count(counter: jax.Array, increment: jax.Array) -> jax.Array:
    """Adds to an int32 counter, which stays at its largest value rather than turn negative."""
    return counter + jnp.minimum(increment.astype(jnp.int32), INT32_MAX - counter)
