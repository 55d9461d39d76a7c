"""Contrastive RL (Eysenbach et al. 2022, arXiv:2206.07568; JaxGCRL, Bortkiewicz et al. 2024, arXiv:2408.11052) on herjax.

There is no reward. A critic learns which states follow which: it scores a state and an action by the distance of their
representation to that of a goal, and is trained to tell the goal drawn for it from those of the batch's other transitions. An
actor goes where the score is highest. So each of the critic's goals is a hindsight goal, a future state of the transition's own
episode, drawn anew for each batch: `relabel="sample"`, `geometric` and `hindsight_ratio=1`. The actor sees the same transitions
under other goals, by `relabel`: half of them are future states, too, the others are those that were pursued. Playing, replay
and updates are one scan; seeds are vmapped, and shared out among the devices that there are.

The critic learns what follows when those actors act that filled the buffer. So the buffer is small and forgets the early ones,
and few actions are random.

Two things are not in the papers. One action in ten is random. And transitions have priorities: at first the puck is never
touched in most episodes, and from these an actor learns to leave it alone. So a priority is how far the goal last drawn for a
transition is from what it achieved itself.

python examples/crl.py                         # learns to push a puck to a goal
python examples/crl.py --task reach --cycles 160   # moves the disc alone
python examples/crl.py --task reacher          # brax's arm, after pip install ".[brax]"
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import experiment

import jax
import jax.numpy as jnp
import optax

import flags
import herjax
import planar
from flags import Count, Number, Several, Share, Weight
from networks import MLP
from planar import Transition


@dataclasses.dataclass(frozen=True)
class Config(flags.Flags):
    """Trains a contrastive agent on a planar task."""

    task: planar.Task = "push"  # push: a puck to a goal; reach: the disc itself; reacher: an arm's tip (brax).
    cycles: flags.Stretches = 500  # Cycles of each run; a multiple of eval-every.
    num_envs: Count = 16  # Episodes of a cycle, side by side.
    updates: Count = 40  # Updates of a cycle.
    batch_size: Several = 256  # Transitions in an update; the critic tells each goal from the others of its batch.
    capacity: Count = 100_000  # Transitions held. The critic learns from what recent actors did.
    hidden: flags.Units = (128, 128)  # Units of the hidden layers of actor and encoders.
    representation: Count = 64  # Elements of a representation.
    learning_rate: Weight = 1e-3  # Of Adam.
    discount: flags.Below1 = 0.98  # Of the geometric distribution of how far ahead goals are.
    priority_exponent: Weight = 1.0  # Alpha; 0: all transitions alike.
    actor_hindsight: Share = 0.5  # Share of hindsight goals among the actor's; the others are those pursued.
    epsilon: Share = 0.1  # Probability of a random action.
    penalty: Weight = 0.1  # Weight of the squared log-sum-exp in the critic's loss.
    entropy: Number = -2.0  # Entropy that the actor is kept at, for each component of an action.
    eval_every: Count = 20  # Cycles between evaluations.
    eval_episodes: Count = 50  # Greedy episodes of an evaluation; a success is at its goal at the end.
    out: Path = Path("results/crl")  # Folder for results.json, success_rate.png, and pictures of the first seed's policy.


class Future(NamedTuple):
    """A hindsight goal: what came later in the episode. The agent learns from `goal` alone."""

    goal: jax.Array  # float32 [G]
    observation: jax.Array  # float32 [D]
    action: jax.Array  # float32 [A]


def future(transition: Transition) -> Future:
    """The goal that the transition achieved."""
    return Future(transition.achieved_goal, transition.next_observation, transition.action)


def no_reward(transition: Transition, goal: Future) -> jax.Array:
    """A contrastive agent needs none."""
    del transition, goal
    return jnp.float32(0)


class Params(NamedTuple):
    """What is learned."""

    actor: optax.Params
    state_encoder: optax.Params  # Of observation and action.
    goal_encoder: optax.Params
    log_temperature: jax.Array  # float32 []; weight of the actor's entropy.


class Loop(NamedTuple):
    """The carry of the scan."""

    params: Params
    opt_state: optax.OptState
    buffer: herjax.BufferState


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    example = planar.example(config.task)
    observation, action, _, goal = example
    buffer = herjax.init(
        example,
        capacity=config.capacity // config.num_envs * config.num_envs,
        max_episode_length=planar.steps(config.task),
        goal_fn=future,
        reward_fn=no_reward,
        strategy=herjax.geometric(config.discount),
        num_goals=1,
        relabel="sample",
        priority_exponent=config.priority_exponent,
        priority_epsilon=0.01,
        num_envs=config.num_envs,
    )
    keys = jax.random.split(key, 3)
    params = Params(
        MLP(config.hidden, 2 * action.size, normalised=True).init(keys[0], observation, goal),
        MLP(config.hidden, config.representation, normalised=True).init(keys[1], observation, action),
        MLP(config.hidden, config.representation, normalised=True).init(keys[2], goal),
        jnp.float32(0),
    )
    return Loop(params, optax.adam(config.learning_rate).init(params), buffer)


def policy(config: Config, params: Params, observation: jax.Array, goal: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Mean and logarithm of the standard deviation of an action before it is squashed, [..., size] each."""
    outputs = MLP(config.hidden, 2 * size, normalised=True).apply(params.actor, observation, goal)
    mean, log_deviation = jnp.split(outputs, 2, axis=-1)
    return mean, -5 + 3.5 * (jnp.tanh(log_deviation) + 1)


def draw_action(mean: jax.Array, log_deviation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An action in [-1, 1], [..., A], and the logarithm of its density, [...]."""
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_deviation) * noise
    log_density = -0.5 * noise**2 - log_deviation - 0.5 * jnp.log(2 * jnp.pi)
    log_slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))  # Of tanh.
    return jnp.tanh(raw), jnp.sum(log_density - log_slope, axis=-1)


def represent(config: Config, params: Params, observation: jax.Array, action: jax.Array) -> jax.Array:
    """The representation of a state and an action, [..., representation]."""
    return MLP(config.hidden, config.representation, normalised=True).apply(params.state_encoder, observation, action)


def represent_goal(config: Config, params: Params, goal: jax.Array) -> jax.Array:
    """The representation of a goal, [..., representation]."""
    return MLP(config.hidden, config.representation, normalised=True).apply(params.goal_encoder, goal)


def score(state: jax.Array, goal: jax.Array) -> jax.Array:
    """How near a goal is: minus the distance of representations [..., representation]."""
    return -jnp.sqrt(jnp.sum((state - goal) ** 2, axis=-1) + 1e-6)


def critic_loss(config: Config, params: Params, batch: herjax.Sample) -> jax.Array:
    """Symmetric InfoNCE: each state's own goal against the batch's others, and each goal's own state; float32 []."""
    states = represent(config, params, batch.transition.observation, batch.transition.action)
    goals = represent_goal(config, params, batch.goal.goal)
    # The distances of all pairs, [batch_size, batch_size], by way of a matrix product.
    squares = jnp.sum(states**2, axis=-1)[:, None] + jnp.sum(goals**2, axis=-1) - 2 * states @ goals.T
    logits = -jnp.sqrt(jnp.maximum(squares, 0) + 1e-6)
    by_state, by_goal = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    return jnp.mean(by_state + by_goal - 2 * jnp.diag(logits)) + config.penalty * jnp.mean(by_state**2)


def actor_loss(config: Config, params: Params, batch: herjax.Sample, key: jax.Array) -> jax.Array:
    """Minus the score and the entropy of what the actor does for each goal, and the temperature's own loss; float32 []."""
    frozen = jax.lax.stop_gradient(params)
    observation, goal, size = batch.transition.observation, batch.goal.goal, batch.transition.action.shape[-1]
    action, log_density = draw_action(*policy(config, params, observation, goal, size), key)
    scores = score(represent(config, frozen, observation, action), represent_goal(config, frozen, goal))
    lacking = config.entropy * size + jax.lax.stop_gradient(log_density)
    return jnp.mean(jnp.exp(frozen.log_temperature) * log_density - scores - jnp.exp(params.log_temperature) * lacking)


def update(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """One step of Adam for actor, critic and temperature, on a batch of fresh goals; returns the critic's loss."""
    key_sample, key_goals, key_actor = jax.random.split(key, 3)
    batch = herjax.sample(loop.buffer, key_sample, config.batch_size, hindsight_ratio=1.0)
    for_actor = herjax.relabel(loop.buffer, batch, key_goals, hindsight_ratio=config.actor_hindsight)

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        critic = critic_loss(config, params, batch)
        return critic + actor_loss(config, params, for_actor, key_actor), critic

    gradients, critic = jax.grad(loss, has_aux=True)(loop.params)
    updates, opt_state = optax.adam(config.learning_rate).update(gradients, loop.opt_state)
    # batch.weights are not used: episodes in which the puck moves are meant to count more. So the critic learns what follows in
    # the episodes drawn, not in all that were played. A priority is that of one goal, kept until the transition is drawn again.
    apart = jnp.linalg.norm(batch.goal.goal - batch.transition.achieved_goal, axis=-1)
    buffer = herjax.update_priorities(loop.buffer, batch.indices, apart)
    return Loop(optax.apply_updates(loop.params, updates), opt_state, buffer), critic


def behave(config: Config, params: Params, greedy: bool) -> planar.Policy:
    """What the actor does, or would do without chance."""
    size = planar.example(config.task).action.size

    def act(observation: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
        mean, log_deviation = policy(config, params, observation, goal, size)
        if greedy:
            return jnp.tanh(mean)
        key_action, key_random, key_which = jax.random.split(key, 3)
        action, _ = draw_action(mean, log_deviation, key_action)
        at_random = jax.random.uniform(key_random, action.shape, minval=-1, maxval=1)
        return jnp.where(jax.random.bernoulli(key_which, config.epsilon, (len(action), 1)), at_random, action)

    return act


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Plays episodes, stores them, and learns; returns the critic's loss."""
    key_play, key_goals, key_updates = jax.random.split(key, 3)
    episodes = planar.play(config.task, behave(config, loop.params, greedy=False), key_play, config.num_envs)
    buffer, _ = jax.lax.scan(lambda buffer, step: (herjax.add(buffer, step), None), loop.buffer, episodes.transitions)
    last = jax.tree.map(lambda leaf: leaf[-1], episodes.transitions)
    pursued = future(last)._replace(goal=episodes.goal)  # Only the actor learns from it.
    loop = loop._replace(buffer=herjax.end_episode(buffer, pursued, key_goals))
    loop, losses = jax.lax.scan(partial(update, config), loop, jax.random.split(key_updates, config.updates))
    return loop, jnp.mean(losses)


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; returns metrics, float32 [] each."""
    key_cycles, key_episodes = jax.random.split(key)
    loop, losses = jax.lax.scan(partial(cycle, config), loop, jax.random.split(key_cycles, config.eval_every))
    success = planar.play(config.task, behave(config, loop.params, greedy=True), key_episodes, config.eval_episodes).success
    return loop, {"success_rate": jnp.mean(success.astype(jnp.float32)), "critic_loss": jnp.mean(losses)}


def train(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """One whole run, in one scan: metrics, float32 [evaluations] each. Jit it and vmap it over keys; the key is used up."""
    return experiment.scan(config, partial(start, config), partial(advance, config), key)[1]


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains all seeds, each as `train` does, and shows what was learned."""
    config = flags.parse(Config, lambda config: jax.eval_shape(partial(start, config), jax.random.key(0)), args)
    training = experiment.over_seeds(config, partial(start, config), partial(advance, config))
    loops, results = experiment.run(config, training, steps=config.eval_every * config.num_envs * planar.steps(config.task))
    first = behave(config, jax.tree.map(lambda leaf: leaf[0], loops.params), greedy=True)
    planar.draw_policy(config.task, first, jax.random.key(config.seed + 1), config.out)
    experiment.show(config, results, f"Planar {config.task}: contrastive RL, no reward", "policy.png", "policy.gif")


if __name__ == "__main__":
    main()
