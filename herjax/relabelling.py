"""Other goals for a batch: `relabel`."""

from functools import partial

import jax
import jax.numpy as jnp

from herjax import checks, hindsight
from herjax.batches import Sample, last_rows, require_sample, under_goals
from herjax.config import Config
from herjax.faults import reported
from herjax.reading import rows_of, transitions_once, visits
from herjax.state import BufferState, config_of
from herjax.strategies import Mixture, StrategyFn, as_mixture


def relabel(
    state: BufferState,
    batch: Sample,
    key: jax.Array,
    *,
    strategy: str | StrategyFn | Mixture | None = None,
    hindsight_ratio: jax.Array | float | None = None,
) -> Sample:
    """The same batch with goals drawn anew: for an agent whose value and actor learn from other goals, or from several.

    Under `jax.vmap` over keys it gives many goals for each transition, whose rows are read once.

    Args:
      state: the buffer that the batch was drawn from, not yet changed. Of another the result is finite, and means nothing.
      batch: from `sample`, of any setting of `init`'s `relabel`.
      key: one key; draws the goals; used up.
      strategy: where hindsight goals come from, as `init` takes it; static. None: as `init` was told. Where one that looks back
        names a step that is not held any more, the first one held takes its place.
      hindsight_ratio: the share of hindsight goals, float [] in [0, 1]; may be traced. None: k / (k + 1). One out of range is
        clipped, and named under checkify.

    Returns:
      The batch; `goal`, `reward`, `terminated`, `is_hindsight`, `last` and `discount` are those of the new goals.

    Raises:
      ValueError: the strategy is unknown, `key` has an axis, or `hindsight_ratio` is not a single number.
      TypeError: `batch` is no `Sample`, `strategy` neither a name nor a function, or `key` is no key.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(3)), jnp.float32(4))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> actor = herjax.relabel(buffer, batch, jax.random.key(2), strategy="final", hindsight_ratio=1.0)
      >>> bool(jnp.all(actor.transition == batch.transition)), set(actor.goal.tolist())
      (True, {4.0})
    """
    chosen = config_of(state).strategy if strategy is None else as_mixture(strategy)
    relabelled: Sample = _relabel(state, batch, key, strategy=chosen, hindsight_ratio=hindsight_ratio)
    return relabelled


@partial(jax.jit, static_argnames=("strategy",))
def _relabel(
    state: BufferState, batch: Sample, key: jax.Array, *, strategy: Mixture, hindsight_ratio: jax.Array | float | None
) -> Sample:
    """`relabel`, compiled."""
    config = config_of(state)
    checks.key(key)
    require_sample(batch)
    state, batch = jax.lax.stop_gradient((state, batch))
    ratio = share(config, "relabel", hindsight_ratio)
    rows = rows_of(state, batch.indices)
    goals_from = None if hindsight_ratio is None and config.num_goals == 0 else strategy
    draws = hindsight.Draws.of(key, goals_from, 1, rows.size)
    is_hindsight, copies = hindsight.relabelled(state, draws, visits(state, rows), goals_from, ratio)
    drawn, last = transitions_once(state, (is_hindsight, copies), *last_rows(state, rows, copies))
    is_hindsight, copies = drawn
    return batch._replace(**under_goals(state, batch.transition, is_hindsight, copies, last))


def share(config: Config, caller: str, hindsight_ratio: jax.Array | float | None) -> jax.Array:
    """The share of hindsight goals, in [0, 1]: float32 []."""
    if hindsight_ratio is None:
        return jnp.asarray(config.num_goals / (config.num_goals + 1), jnp.float32)
    ratio = jax.lax.stop_gradient(checks.real("hindsight_ratio", hindsight_ratio, "one number in [0, 1]"))
    return reported(
        jnp.clip(ratio, 0, 1).astype(jnp.float32),
        (ratio >= 0) & (ratio <= 1),
        caller + ": hindsight_ratio must lie in [0, 1], but it is {hindsight_ratio}; it was clipped",
        hindsight_ratio=ratio,
    )
