"""How batches are drawn: `sample`."""

from functools import partial

import jax
import jax.numpy as jnp

from herjax import checks, drawing, hindsight
from herjax.batches import Sample, last_rows, under_goals
from herjax.config import Config
from herjax.reading import rows_of, transitions_once, visits
from herjax.relabelling import share
from herjax.state import BufferState, config_of

_BETA = 0.4
"""The default exponent of importance weights, where prioritised replay begins (arXiv:1511.05952, table 3)."""


def sample(
    state: BufferState,
    key: jax.Array,
    batch_size: int,
    *,
    beta: jax.Array | float = _BETA,
    hindsight_ratio: jax.Array | float | None = None,
    axis_name: str | None = None,
) -> Sample:
    """Draws a batch of copies, with replacement: uniformly, or in proportion to priorities, one from each of equal strata.

    Args:
      state: the buffer.
      key: one key, also with `num_envs`: draws the batch, and with `relabel="sample"` its goals; used up.
      batch_size: copies drawn, static, >= 1.
      beta: exponent of the importance weights `(N P)^-beta` (arXiv:1511.05952, section 3.4), float []; may be traced.
      hindsight_ratio: the share of draws with a hindsight goal, float [] in [0, 1]; may be traced. None: k / (k + 1). A number
        needs `relabel="sample"` and `num_goals` >= 1. One out of range is clipped, and named under checkify.
      axis_name: a mapped axis over which the buffer is sharded; `probabilities` and `weights` are then those of the whole.

    Returns:
      The batch; zeros where there is nothing to draw, as `can_sample` says.

    Raises:
      ValueError: `batch_size` is less than 1, `key` has an axis, or `hindsight_ratio` is given where `sample` draws no goals;
        that or `beta` is not a single number.
      TypeError: `batch_size` is no int, or `key` is no key.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.end_episode(herjax.add(buffer, jnp.float32(3)), jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> sorted(set(zip(batch.is_hindsight.tolist(), batch.reward.tolist())))  # Every hindsight goal was reached here.
      [(False, -1.0), (True, 0.0)]
    """
    batch_size = checks.whole("batch_size", batch_size, 1)
    options = {"batch_size": batch_size, "hindsight_ratio": hindsight_ratio, "axis_name": axis_name}
    # The default is a constant of the compiled program: nothing is moved to the device for it.
    by_default = isinstance(beta, float) and beta == _BETA
    batch: Sample = _sample(state, key, **options) if by_default else _sample(state, key, **options, beta=beta)
    return batch


@partial(jax.jit, static_argnames=("batch_size", "axis_name"))
def _sample(
    state: BufferState,
    key: jax.Array,
    *,
    batch_size: int,
    hindsight_ratio: jax.Array | float | None,
    axis_name: str | None,
    beta: jax.Array | float = _BETA,
) -> Sample:
    """`sample`, compiled."""
    config = config_of(state)
    checks.key(key)
    beta = checks.real("beta", beta, "one number, such as 0.4").astype(jnp.float32)
    state, beta = jax.lax.stop_gradient((state, beta))
    ratio = _ratio(config, hindsight_ratio)
    strategy = config.strategy if config.relabels_when_sampled and config.num_goals > 0 else None
    draws = hindsight.Draws.of(key, strategy, 1 if strategy is None else 2, batch_size)
    indices, probabilities, weights = drawing.draw(state, draws.words[0], beta, axis_name)
    rows = rows_of(state, indices)
    if config.relabels_when_sampled:
        draws = draws._replace(words=draws.words[1:])
        is_hindsight, copies = hindsight.relabelled(state, draws, visits(state, rows), strategy, ratio)
    else:
        is_hindsight, copies = jax.lax.sign(indices - rows * config.num_copies), config.stored.read(state.copies, indices)
    drawn = (is_hindsight, copies, indices, probabilities, weights)
    # All reads are over before any of the batch is there, so that a write that waits for some of it waits for all of them.
    drawn, (transition, *last) = transitions_once(state, drawn, rows, *last_rows(state, rows, copies))
    is_hindsight, copies, indices, probabilities, weights = drawn
    fields = under_goals(state, transition, is_hindsight, copies, last)
    return Sample(transition=transition, indices=indices, probabilities=probabilities, weights=weights, **fields)


def _ratio(config: Config, hindsight_ratio: jax.Array | float | None) -> jax.Array:
    """The chance that a goal drawn at sampling is a hindsight goal: float32 []."""
    if hindsight_ratio is not None and (not config.relabels_when_sampled or config.num_goals == 0):
        raise ValueError(
            f"hindsight_ratio is given, but init had relabel={config.relabel!r} and num_goals={config.num_goals}: sample draws "
            "no goals; give init relabel='sample' and num_goals >= 1, or leave hindsight_ratio out."
        )
    return share(config, "sample", hindsight_ratio)
