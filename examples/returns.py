"""n-step returns for hindsight, whose actions pursued another goal than the one they are judged by."""

import jax
import jax.numpy as jnp

import herjax
from flags import HindsightFlags


def largest(rewards: jax.Array, discounts: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """The largest return of a window: over its first step, its first two, and so on, each with the value of what follows.

    In a deterministic environment no return is larger than the best policy's, whatever the actions were, if no value is too
    large. So an action that was good for another goal alone only makes a return smaller, and the largest one leaves it out
    (the lower bounds of He et al. 2016, arXiv:1611.01606). In a random environment the largest is too large: luck counts.

    Args:
      rewards: of each step under the goal, float32 [n].
      discounts: of each step, float32 [n]: gamma, or 0 where the step ends the task.
      values: of each step's next observation, float32 [n].
      mask: whether the episode has that step, bool [n]; a prefix of the window. The first step counts in any case.

    Returns:
      The return, float32 [].
    """
    after = jnp.cumprod(discounts)
    before = jnp.concatenate([jnp.ones(1, after.dtype), after[:-1]])
    returns = jnp.cumsum(before * rewards) + after * values
    return jnp.max(returns, initial=returns[0], where=mask)


def window(config: HindsightFlags, buffer: herjax.BufferState, sample: herjax.Sample) -> herjax.Steps | None:
    """The steps of each sample's window, leaves [batch_size, num_steps, ...]; None where returns are not corrected."""
    return herjax.steps(buffer, sample, range(config.num_steps)) if config.correction == "largest" else None


def stored_steps(config: HindsightFlags) -> int:
    """What `herjax.init` is told of n-step returns: nothing where they are corrected, as windows are then read step by step."""
    return config.num_steps if config.correction == "none" else 1
