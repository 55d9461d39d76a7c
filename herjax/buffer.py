"""The replay buffer: one immutable state, and the pure functions that take it and return the next.

Episodes lie in rows one after another, each in one piece, the running one at the end:

    [0, head)                      episodes of this lap
    [head, head + pending)         the running episode
    [head, head + L)               the dead zone: never sampled, so that writing here is never a fault
    [head + L, lap_end)            what is left of the lap before

L is `max_episode_length`. Where the next episode might not fit behind `head`, a new lap begins at row 0. Thus an episode is read and written as one
window, a commit that has nothing to commit writes where nobody looks, and no operation depends on the capacity.

A row holds one transition and has `1 + num_goals` copies, each with a goal, a reward and a priority: copy 0 has the goal that
the episode pursued, the others have hindsight goals. Copy `c` of row `r` has index `r * (1 + num_goals) + c`.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from herjax import relabel, sum_tree
from herjax.batching import anywhere
from herjax.relabel import Goal, GoalFn, RewardFn, StrategyFn, TerminatedFn, Transition
from herjax.rows import Layout, Rows

_INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides shapes and behaviour; static."""

    capacity: int
    max_episode_length: int
    goal_fn: GoalFn
    reward_fn: RewardFn
    terminated_fn: TerminatedFn | None
    strategy: str | StrategyFn
    num_goals: int
    priority_exponent: float | None
    priority_epsilon: float
    transition: Layout
    goal: Layout
    copy: Layout

    @property
    def num_copies(self) -> int:
        """Copies of each transition: its own goal and the hindsight goals."""
        return 1 + self.num_goals

    @property
    def num_rows(self) -> int:
        """Rows enough for `capacity` beside the dead zone, and for an ended episode to outlive the start of a new lap."""
        return self.max_episode_length + max(self.capacity, 2 * self.max_episode_length - 1)


class _Copy(NamedTuple):
    """What a copy adds to its transition."""

    goal: Goal
    reward: jax.Array  # []
    terminated: jax.Array | None  # bool []


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "transitions",
        "copies",
        "tree",
        "max_priority",
        "head",
        "lap_end",
        "pending",
        "num_dropped",
        "num_rejected",
    ],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class BufferState:
    """The state of one buffer: a pytree, made by `init` and by the functions that take one.

    R is `config.num_rows`, K is `config.num_copies`. Only `num_dropped` and `num_rejected` are meant to be read by users.
    """

    transitions: Rows  # [R + 1, words]; the last row takes what is dropped.
    copies: Rows  # [R * K, words]
    tree: sum_tree.SumTree | None  # Priorities of the copies; None: uniform.
    max_priority: jax.Array  # float32 []; the largest accepted priority so far.
    head: jax.Array  # int32 []; the first row of the running episode.
    lap_end: jax.Array  # int32 []; the end of the lap before this one; 0 in the first.
    pending: jax.Array  # int32 []; transitions of the running episode.
    num_dropped: jax.Array  # int32 []; transitions past `max_episode_length`, not stored.
    num_rejected: jax.Array  # int32 []; priorities not accepted.
    config: Config


class Sample(NamedTuple):
    """A batch of copies; every field is [batch_size, ...]. On an empty buffer all of it is zero."""

    transition: Transition
    goal: Goal
    reward: jax.Array  # [batch_size], in `reward_fn`'s dtype.
    terminated: jax.Array | None  # bool [batch_size]; None without `terminated_fn`.
    is_hindsight: jax.Array  # bool [batch_size]; whether the goal is a hindsight goal.
    indices: jax.Array  # int32 [batch_size]; for `update_priorities`.
    probabilities: jax.Array  # float32 [batch_size]; of drawing that index.
    weights: jax.Array  # float32 [batch_size]; importance weights, the largest is 1.


def init(
    transition: Transition,
    *,
    capacity: int,
    max_episode_length: int,
    goal_fn: GoalFn,
    reward_fn: RewardFn,
    terminated_fn: TerminatedFn | None = None,
    strategy: str | StrategyFn = "future",
    num_goals: int = 4,
    relabel: str = "episode_end",
    priority_exponent: float | None = None,
    priority_epsilon: float = 1e-6,
    num_envs: int | None = None,
) -> BufferState:
    """Makes an empty buffer.

    The functions are kept in the state and compare by identity: define them once, outside the training loop.

    Args:
      transition: an example of one transition, unbatched: a pytree of arrays or `jax.ShapeDtypeStruct`s.
      capacity: the most finished transitions held. Their copies do not count.
      max_episode_length: the most transitions of one episode that are stored.
      goal_fn: `goal_fn(transition) -> goal`, the goal that the transition achieved, after its action; any pytree.
      reward_fn: `reward_fn(transition, goal) -> []`, the transition's reward had `goal` been desired.
      terminated_fn: `terminated_fn(transition, goal) -> bool []`, whether the transition ends the task under `goal`.
      strategy: "final", "future", "episode" or "random" (arXiv:1707.01495, section 4.5), or a function
        `(key, step, length) -> goal_step` of int32 scalars, such as `herjax.geometric(0.98)`.
      num_goals: hindsight goals per transition, k in the paper. 0: no hindsight. "final" always has one.
      relabel: "episode_end": goals are drawn once, when their episode ends.
      priority_exponent: alpha of prioritised replay (arXiv:1511.05952, section 3.3); None: uniform replay.
      priority_epsilon: added to every priority, so that none is zero.
      num_envs: None: one environment, unbatched arguments.

    Returns:
      The state of an empty buffer.

    Raises:
      ValueError: an argument is out of range, or a function returns the wrong shape; the message says what to give.
      TypeError: an argument or a function's result is of the wrong type.
      NotImplementedError: `relabel="sample"` or `num_envs` is asked for.
    """
    if relabel == "sample" or num_envs is not None:
        asked = "relabel='sample'" if relabel == "sample" else f"num_envs={num_envs}"
        raise NotImplementedError(f"{asked} is not implemented yet; use relabel='episode_end' and num_envs=None.")
    if relabel != "episode_end":
        raise ValueError(f"relabel is {relabel!r}; give 'episode_end' or 'sample'.")
    _check_whole("max_episode_length", max_episode_length, 1)
    _check_whole("num_goals", num_goals, 0)
    _check_whole("capacity", capacity, 1)
    if capacity < max_episode_length:
        raise ValueError(
            f"capacity is {capacity}, less than one episode; give at least max_episode_length, which is {max_episode_length}."
        )
    if priority_exponent is not None and not 0 <= priority_exponent < float("inf"):
        raise ValueError(f"priority_exponent is {priority_exponent}; give a finite number >= 0, or None for uniform replay.")
    if not 0 <= priority_epsilon < float("inf"):
        raise ValueError(f"priority_epsilon is {priority_epsilon}; give a finite number >= 0.")

    transition_layout = Layout.of("transition", transition)
    if not transition_layout.leaves:
        raise ValueError(f"transition is {transition!r}, which holds no array; give a pytree with at least one leaf.")
    goal_layout = Layout.of("goal", jax.eval_shape(goal_fn, transition_layout.struct()))
    if not goal_layout.leaves:
        raise ValueError("goal_fn returns no array; return the achieved goal of the transition.")
    reward = jax.eval_shape(reward_fn, transition_layout.struct(), goal_layout.struct())
    _check_scalar("reward_fn", reward)
    terminated = None
    if terminated_fn is not None:
        terminated = jax.eval_shape(terminated_fn, transition_layout.struct(), goal_layout.struct())
        _check_scalar("terminated_fn", terminated)
        if terminated.dtype != jnp.bool_:
            raise TypeError(f"terminated_fn returns dtype {terminated.dtype}; return a bool.")

    config = Config(
        capacity=capacity,
        max_episode_length=max_episode_length,
        goal_fn=goal_fn,
        reward_fn=reward_fn,
        terminated_fn=terminated_fn,
        strategy=_strategy(strategy),
        num_goals=min(num_goals, 1) if strategy == "final" else num_goals,
        priority_exponent=priority_exponent,
        priority_epsilon=priority_epsilon,
        transition=transition_layout,
        goal=goal_layout,
        copy=Layout.of("copy", _Copy(goal_layout.struct(), reward, terminated)),
    )
    num_leaves = (config.num_rows + max_episode_length) * config.num_copies  # Room for a cleared window behind the last head.
    if num_leaves > _INT32_MAX:
        raise ValueError(
            f"capacity {capacity} with num_goals {num_goals} makes {num_leaves} copies, more than an int32 index can name; "
            "give a smaller capacity or num_goals."
        )
    zero = jnp.int32(0)
    return BufferState(
        transitions=config.transition.zeros(config.num_rows + 1),
        copies=config.copy.zeros(config.num_rows * config.num_copies),
        tree=None if priority_exponent is None else sum_tree.init(num_leaves),
        max_priority=jnp.float32(1),
        head=zero,
        lap_end=zero,
        pending=zero,
        num_dropped=zero,
        num_rejected=zero,
        config=config,
    )


@jax.jit
def add(state: BufferState, transition: Transition) -> BufferState:
    """Appends a transition to the running episode. It is neither sampled nor a goal's source until the episode ends.

    Past `max_episode_length` the transition is not stored but counted in `num_dropped`, and named under checkify.

    Args:
      state: the buffer.
      transition: one transition, like `init`'s example.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's.
      TypeError: a leaf's dtype differs.
    """
    config = state.config
    config.transition.check("transition", transition)
    fits = state.pending < config.max_episode_length
    checkify.debug_check(
        fits,
        "add: the episode is longer than max_episode_length, which is {max_episode_length}; the transition was dropped",
        max_episode_length=jnp.int32(config.max_episode_length),
    )
    row = jnp.where(fits, state.head + state.pending, config.num_rows)
    return dataclasses.replace(
        state,
        transitions=_write(state.transitions, jax.tree.map(lambda word: word[None], config.transition.pack(transition)), row),
        pending=state.pending + fits,
        num_dropped=_count(state.num_dropped, ~fits),
    )


@jax.jit
def end_episode(state: BufferState, goal: Goal, key: jax.Array, done: jax.Array | bool = True) -> BufferState:
    """Ends the running episode: hindsight goals are drawn, rewards recomputed, and its transitions can be sampled.

    Args:
      state: the buffer.
      goal: the goal that the ended episode pursued; structure, shapes and dtypes are those of `goal_fn`'s result.
      key: draws the hindsight goals; used up.
      done: bool [], whether the episode ended. Where it is False, or no transition is pending, nothing changes.

    Returns:
      The next state. The oldest rows have made room; the ended episode is held whole.

    Raises:
      ValueError: the goal's structure or a leaf's shape differs from `goal_fn`'s, or `done` is no scalar.
      TypeError: a leaf's dtype differs, or `done` is no bool.
    """
    state.config.goal.check("goal", goal)
    done = jnp.asarray(done)
    if done.shape:
        raise ValueError(f"done has shape {done.shape}, expected (); with one environment pass one bool.")
    if done.dtype != jnp.bool_:
        raise TypeError(f"done has dtype {done.dtype}, expected bool; convert it with astype(bool).")
    ending = done & (state.pending > 0)
    return jax.lax.cond(anywhere(ending), _commit, lambda state, *_: state, state, goal, key, ending)


def _commit(state: BufferState, goal: Goal, key: jax.Array, ending: jax.Array) -> BufferState:
    """Makes the running episode a finished one if `ending`; otherwise writes into the dead zone, to no effect."""
    config = state.config
    length = jnp.where(ending, state.pending, 0)
    end = state.head + length
    new_lap = end + config.max_episode_length > config.num_rows
    ended = dataclasses.replace(
        state,
        head=jnp.where(new_lap, 0, end),
        lap_end=jnp.where(new_lap, end, state.lap_end),
        pending=state.pending - length,
    )
    copies = _relabelled(ended, state.head, goal, key, state.pending, ending)
    return dataclasses.replace(
        ended,
        copies=_write(state.copies, copies, state.head * config.num_copies),
        tree=None if state.tree is None else _commit_priorities(ended, state.head, length),
    )


def _relabelled(
    state: BufferState, start: jax.Array, goal: Goal, key: jax.Array, pending: jax.Array, ending: jax.Array
) -> Rows:
    """The copies of the episode at `start`, its own goal's and the hindsight goals': rows [max_episode_length * K, words]."""
    config = state.config
    length = jnp.maximum(pending, 1)
    steps = jnp.arange(config.max_episode_length)
    transitions = _read_transitions(state, start + jnp.minimum(steps, length - 1))
    goals = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (config.max_episode_length, 1, *jnp.shape(leaf))), goal)
    if config.num_goals > 0:
        hindsight = _hindsight_goals(state, key, transitions, length, ending)
        goals = jax.tree.map(lambda own, drawn: jnp.concatenate([own, drawn], axis=1), goals, hindsight)

    def copy(transition: Transition, goal: Goal) -> Rows:
        terminated = None if config.terminated_fn is None else config.terminated_fn(transition, goal)
        return config.copy.pack(_Copy(goal, config.reward_fn(transition, goal), terminated))

    copies = jax.vmap(jax.vmap(copy, (None, 0)))(transitions, goals)
    return jax.tree.map(lambda words: words.reshape(-1, words.shape[-1]), copies)


def _hindsight_goals(
    state: BufferState, key: jax.Array, transitions: Transition, length: jax.Array, ending: jax.Array
) -> Goal:
    """Hindsight goals of every step of the ended episode, each leaf [max_episode_length, num_goals, ...]."""
    config = state.config
    if callable(config.strategy):
        achieved = jax.vmap(config.goal_fn)(transitions)
        return relabel.hindsight_goals(config.strategy, key, achieved, length, config.num_goals, ending)
    ages = jax.random.randint(key, (config.max_episode_length, config.num_goals), 1, jnp.maximum(size(state), 1) + 1)
    rows = jnp.maximum(_row(state, ages), 0)
    return jax.vmap(lambda rows: jax.vmap(config.goal_fn)(_read_transitions(state, rows)))(rows)


def _commit_priorities(state: BufferState, start: jax.Array, length: jax.Array) -> sum_tree.SumTree:
    """Gives the ended episode's copies the largest priority so far, and those in the dead zone none."""
    config = state.config
    window = config.max_episode_length * config.num_copies
    steps = jnp.arange(window) // config.num_copies
    fresh = jnp.where(steps < length, _stored(config, state.max_priority), 0)
    none = jnp.zeros(window)
    # The last window clears what a new lap leaves behind the ended episode; without a new lap it is the second again.
    rows_and_values = [(start, fresh), (state.head, none), (start + length, none)]
    tree = sum_tree.fill(state.tree, [(row * config.num_copies, values) for row, values in rows_and_values])
    if config.capacity < 2 * config.max_episode_length - 1:
        # So small a buffer has rows to spare beyond its capacity: clear those that have just left it.
        leaves = tree[0]
        held = _is_held(state, jnp.arange(leaves.size) // config.num_copies)
        tree = sum_tree.fill(tree, [(jnp.int32(0), jnp.where(held, leaves, 0))])
    return tree


@partial(jax.jit, static_argnames=("batch_size", "axis_name"))
def sample(
    state: BufferState,
    key: jax.Array,
    batch_size: int,
    *,
    beta: jax.Array | float = 0.4,
    axis_name: str | None = None,
) -> Sample:
    """Draws copies, with replacement: uniformly, or in proportion to their priorities, one from each of equal strata.

    Args:
      state: the buffer.
      key: draws the batch; used up.
      batch_size: copies drawn, static, >= 1.
      beta: exponent of the importance weights `(N P)^-beta` (arXiv:1511.05952, section 3.4); may be traced.
      axis_name: a mapped axis over which the buffer is sharded; `probabilities` and `weights` are then those of the whole.

    Returns:
      The batch; zeros where no episode has finished, as `can_sample` says.

    Raises:
      ValueError: `batch_size` is less than 1.
    """
    _check_whole("batch_size", batch_size, 1)
    config = state.config
    held = size(state) * config.num_copies
    if state.tree is None:
        drawn = jax.random.randint(key, (batch_size,), 0, jnp.maximum(held, 1))
        rows = jnp.maximum(_row(state, drawn // config.num_copies + 1), 0)
        indices = rows * config.num_copies + drawn % config.num_copies
        priorities, priority_sum = jnp.ones(batch_size), held.astype(jnp.float32)
    else:
        priority_sum = sum_tree.total(state.tree)
        targets, residues = _strata(key, batch_size, priority_sum)
        indices, priorities = jax.vmap(partial(sum_tree.find, state.tree))(targets, residues)
        rows = indices // config.num_copies
    copies: _Copy = jax.vmap(config.copy.unpack)(_read(state.copies, indices))
    if axis_name is not None:
        held, priority_sum = jax.lax.psum((held, priority_sum), axis_name)
    probabilities = priorities / jnp.where(priority_sum > 0, priority_sum, 1)
    drawn_sample = Sample(
        transition=_read_transitions(state, rows),
        goal=copies.goal,
        reward=copies.reward,
        terminated=copies.terminated,
        is_hindsight=indices % config.num_copies > 0,
        indices=indices,
        probabilities=probabilities,
        weights=jnp.ones(batch_size) if state.tree is None else _weights(probabilities, held, beta, axis_name),
    )
    return jax.tree.map(lambda leaf: jnp.where(can_sample(state), leaf, jnp.zeros_like(leaf)), drawn_sample)


def _strata(key: jax.Array, batch_size: int, priority_sum: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One point in each of `batch_size` equal parts of [0, priority_sum): a float32 [batch_size], and what its rounding omits.

    A float32 holds the part's number and as many random bits as still fit; the rest of the 32 random bits is the residue.
    """
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    coarse_bits = max(23 - (batch_size - 1).bit_length(), 1)
    fine_bits = min(32 - coarse_bits, 24)
    coarse = (bits >> (32 - coarse_bits)).astype(jnp.float32) * 2.0**-coarse_bits
    fine = ((bits >> (32 - coarse_bits - fine_bits)) & (2**fine_bits - 1)).astype(jnp.float32) * 2.0 ** -(coarse_bits + fine_bits)
    width = priority_sum / batch_size
    return (jnp.arange(batch_size) + coarse) * width, fine * width


def _weights(probabilities: jax.Array, held: jax.Array, beta: jax.Array | float, axis_name: str | None) -> jax.Array:
    """Importance weights `(N P)^-beta` over the batch's largest, float32 [batch_size]."""
    drawn = probabilities > 0
    scaled = jnp.where(drawn, probabilities * held.astype(jnp.float32), 1)
    weights = jnp.where(drawn, scaled ** -jnp.asarray(beta, jnp.float32), 0)
    largest = jnp.max(weights)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    return weights / jnp.where(largest > 0, largest, 1)


@jax.jit
def update_priorities(state: BufferState, indices: jax.Array, priorities: jax.Array) -> BufferState:
    """Sets the priorities of sampled copies, stored as `(p + priority_epsilon)^priority_exponent`.

    Where an index comes twice, its last accepted priority wins. A priority that is NaN, infinite or negative, or whose index
    holds nothing, changes nothing, is counted in `num_rejected`, and named under checkify; on an empty buffer it is ignored.

    Args:
      state: the buffer, made with a `priority_exponent`.
      indices: integer [n], from `sample`.
      priorities: [n], the new absolute TD errors.

    Returns:
      The next state.

    Raises:
      ValueError: the buffer is uniform, or the shapes differ.
      TypeError: `indices` are not integers.
    """
    config = state.config
    if state.tree is None:
        raise ValueError("priorities cannot be updated: the buffer is uniform; give init a priority_exponent, such as 0.6.")
    if jnp.shape(indices) != jnp.shape(priorities):
        raise ValueError(
            f"indices have shape {jnp.shape(indices)} and priorities {jnp.shape(priorities)}; give one priority for each index."
        )
    if not jnp.issubdtype(jnp.asarray(indices).dtype, jnp.integer):
        raise TypeError(f"indices have dtype {jnp.asarray(indices).dtype}; give the integers that sample returned.")
    indices, priorities = jnp.ravel(indices).astype(jnp.int32), jnp.ravel(priorities).astype(jnp.float32)
    valid = jnp.isfinite(priorities) & (priorities >= 0)
    held = _is_held(state, indices // config.num_copies)
    _report_rejected(state, indices, priorities, held, valid)
    accepted = held & valid
    targets = jnp.where(accepted, indices, _INT32_MAX)
    # Sorted by index, those that are alike form a run, of which the last is kept.
    targets, stored = jax.lax.sort((targets, _stored(config, priorities)), num_keys=1, is_stable=True)
    targets = jnp.where(targets == jnp.append(targets[1:], -1), _INT32_MAX, targets)
    return dataclasses.replace(
        state,
        tree=sum_tree.set_leaves(state.tree, targets, stored),
        max_priority=jnp.maximum(state.max_priority, jnp.max(jnp.where(accepted, priorities, 0))),
        num_rejected=_count(state.num_rejected, jnp.where(can_sample(state), jnp.sum(~accepted), 0)),
    )


def _report_rejected(
    state: BufferState, indices: jax.Array, priorities: jax.Array, held: jax.Array, valid: jax.Array
) -> None:
    empty = ~can_sample(state)
    checkify.debug_check(
        empty | jnp.all(valid),
        "update_priorities: priorities must be finite and >= 0, but one is {priority}; it was rejected",
        priority=priorities[jnp.argmin(valid)],
    )
    checkify.debug_check(
        empty | jnp.all(held),
        "update_priorities: indices must come from sample, but {index} holds nothing; it was rejected",
        index=indices[jnp.argmin(held)],
    )


@jax.jit
def can_sample(state: BufferState) -> jax.Array:
    """Whether an episode has finished, so that `sample` has something to draw: bool []."""
    return size(state) > 0


@jax.jit
def size(state: BufferState) -> jax.Array:
    """Finished transitions held, copies not counted: int32 []."""
    config = state.config
    return jnp.minimum(config.capacity, jnp.maximum(state.head, state.lap_end - config.max_episode_length))


def _row(state: BufferState, age: jax.Array) -> jax.Array:
    """The row of the `age`-th youngest finished transition, 1 the youngest; int32 of `age`'s shape."""
    row = state.head - age
    return jnp.where(row < 0, row + state.lap_end, row)


def _is_held(state: BufferState, row: jax.Array) -> jax.Array:
    """Whether a row holds a finished transition; bool of `row`'s shape."""
    age = state.head - row
    age = jnp.where(age <= 0, age + state.lap_end, age)
    return (row >= 0) & (age >= 1) & (age <= size(state))


def _stored(config: Config, priorities: jax.Array) -> jax.Array:
    """The tree's value of a priority, kept where neither it nor the sum of all can underflow or overflow."""
    assert config.priority_exponent is not None
    powers = (priorities + config.priority_epsilon) ** config.priority_exponent
    lowest = float(jnp.finfo(jnp.float32).tiny) if config.priority_epsilon > 0 else 0.0
    return jnp.clip(powers, lowest, float(jnp.finfo(jnp.float32).max) / _INT32_MAX)


def _read(rows: Rows, indices: jax.Array) -> Rows:
    return jax.tree.map(lambda words: words.at[indices].get(mode="promise_in_bounds"), rows)


def _read_transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 [n]: each leaf [n, ...]."""
    return jax.vmap(state.config.transition.unpack)(_read(state.transitions, rows))


def _write(rows: Rows, block: Rows, start: jax.Array) -> Rows:
    """Writes a block of rows, [n, words], from row `start` on."""
    return jax.tree.map(lambda words, new: jax.lax.dynamic_update_slice_in_dim(words, new, start, axis=0), rows, block)


def _count(counter: jax.Array, increment: jax.Array) -> jax.Array:
    """Adds to an int32 counter, which stays at its largest value rather than turn negative."""
    return counter + jnp.minimum(increment.astype(jnp.int32), _INT32_MAX - counter)


def _strategy(strategy: str | StrategyFn) -> str | StrategyFn:
    if isinstance(strategy, str) and strategy in (relabel.RANDOM, *relabel.STRATEGIES):
        return relabel.STRATEGIES.get(strategy, strategy)
    if not callable(strategy):
        names = ", ".join(map(repr, sorted((relabel.RANDOM, *relabel.STRATEGIES))))
        raise ValueError(f"strategy is {strategy!r}; give one of {names}, or a function (key, step, length) -> goal_step.")
    step = jax.ShapeDtypeStruct((), jnp.int32)
    goal_step = jax.eval_shape(strategy, jax.eval_shape(lambda: jax.random.key(0)), step, step)
    _check_scalar("strategy", goal_step)
    if not jnp.issubdtype(goal_step.dtype, jnp.integer):
        raise TypeError(f"strategy returns dtype {goal_step.dtype}; return the goal's step as an int32.")
    return strategy


def _check_scalar(function: str, result: chex.ArrayTree) -> None:
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape:
        raise ValueError(f"{function} returns {result}; return one scalar (shape ()) for one transition: herjax vmaps it.")


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; give an int >= {least}.")
    if value < least:
        raise ValueError(f"{name} is {value}; give an int >= {least}.")
