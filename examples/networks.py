"""The parts that an agent's networks share: layers, and statistics that their inputs are normalised by."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Statistics(NamedTuple):
    """Running mean and variance of vectors."""

    count: jax.Array  # float32 []
    mean: jax.Array  # float32 [D]
    variance: jax.Array  # float32 [D]

    @classmethod
    def of(cls, vectors: jax.Array) -> "Statistics":
        """The statistics of vectors [..., D]."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        return cls(jnp.float32(len(flat)), flat.mean(axis=0), flat.var(axis=0))

    def merged(self, other: "Statistics") -> "Statistics":
        """The statistics of both samples together (Chan et al. 1979)."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        apart = other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * apart**2
        return Statistics(count, self.mean + share * apart, variance)

    def normalize(self, vectors: jax.Array) -> jax.Array:
        """Of mean 0 and variance 1, clipped to 5 standard deviations."""
        return jnp.clip((vectors - self.mean) / jnp.maximum(jnp.sqrt(self.variance), 1e-2), -5, 5)


class MLP(nn.Module):
    """Hidden layers and a linear one, for inputs side by side: [..., D] each -> [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    normalised: bool = False  # Whether hidden layers are normalised, and then swished, or have rectifiers.

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """What the last layer gives."""
        x = jnp.concatenate(inputs, axis=-1)
        for units in self.hidden:
            x = nn.Dense(units)(x)
            x = nn.swish(nn.LayerNorm()(x)) if self.normalised else nn.relu(x)
        return nn.Dense(self.outputs)(x)
