"""Random numbers for many draws at once, each from 32 random bits."""

import math

import jax
import jax.numpy as jnp


def words(key: jax.Array, *shape: int) -> jax.Array:
    """Random bits, uint32 of this shape; the key is used up.

    Those of threefry are the data of keys split from it: it computes two words at a time, and `jax.random.bits` keeps one. The
    data of other keys, of four words, are not random: those of "rbg" come twice.
    """
    size, width = math.prod(shape), jax.eval_shape(jax.random.key_data, key).size
    if width != 2:
        return jax.random.bits(key, shape, jnp.uint32)
    keys = jax.random.split(key, math.ceil(size / width))
    return jax.random.key_data(keys).ravel()[:size].reshape(shape)


def uniform(words: jax.Array) -> jax.Array:
    """Uniform numbers in [0, 1), multiples of 2^-24: float32 of the shape of `words`."""
    return (words >> 8).astype(jnp.float32) * 2.0**-24


def below(words: jax.Array, bound: jax.Array) -> jax.Array:
    """Uniform numbers in `0 .. bound - 1`, to within bound / 2^32: int32 of the shape of `words`; `bound` is an int32.

    The high 32 bits of words x bound. By halves, as `jax.lax.mulhi` does not compile under `shard_map` over several devices
    (jax 0.10.2).
    """
    high, low = words >> 16, words & 0xFFFF
    bound_high, bound_low = (half.astype(jnp.uint32) for half in (bound >> 16, bound & 0xFFFF))
    upper = high * bound_low + (low * bound_low >> 16)
    lower = low * bound_high + (upper & 0xFFFF)
    return (high * bound_high + (upper >> 16) + (lower >> 16)).astype(jnp.int32)
