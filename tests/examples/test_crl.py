"""The contrastive agent: its losses are the published ones, its goals come later in the same episode, and it learns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import logsumexp

import crl
import herjax
import planar

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = crl.Config(
    cycles=2, eval_every=1, num_envs=3, updates=2, batch_size=8, capacity=600, hidden=(8,), representation=4, progress=False
)


def filled(config: crl.Config, key: jax.Array) -> tuple[crl.Loop, planar.Episodes]:
    """A loop that has stored an episode of each environment, and the episodes."""
    loop = crl.start(config, key)
    episodes = planar.play(config.task, crl.behave(config, loop.params, greedy=False), key, config.num_envs)
    buffer, _ = jax.lax.scan(lambda buffer, step: (herjax.add(buffer, step), None), loop.buffer, episodes.transitions)
    pursued = crl.future(jax.tree.map(lambda leaf: leaf[-1], episodes.transitions))
    return loop._replace(buffer=herjax.end_episode(buffer, pursued._replace(goal=episodes.goal), key)), episodes


def test_goals_come_later_in_the_same_episode(key: jax.Array) -> None:
    """Each goal, state and action of a batch is what one step of the transition's episode achieved, never an earlier one."""
    loop, episodes = filled(TINY, key)
    batch = herjax.sample(loop.buffer, key, 200, hindsight_ratio=1.0)
    played = jax.tree.map(np.asarray, episodes.transitions)

    def places(field: np.ndarray, drawn: jax.Array) -> np.ndarray:
        """Step and environment at which each of the drawn values was played, int [n, 2]."""
        same = (field == np.asarray(drawn)[:, None, None]).all(axis=-1)
        assert (same.sum(axis=(1, 2)) == 1).all()
        return np.argwhere(same)[:, 1:]

    now, then = (
        places(played.observation, batch.transition.observation),
        places(played.next_observation, batch.goal.observation),
    )
    np.testing.assert_array_equal(now[:, 1], then[:, 1])
    assert (then[:, 0] >= now[:, 0]).all()
    assert (then[:, 0] > now[:, 0] + 5).any()
    np.testing.assert_array_equal(batch.goal.goal, played.achieved_goal[then[:, 0], then[:, 1]])
    np.testing.assert_array_equal(batch.goal.action, played.action[then[:, 0], then[:, 1]])


def test_the_critics_loss_is_symmetric_infonce(key: jax.Array) -> None:
    """Both cross entropies over minus the distances of all pairs, and the penalty on the log-sum-exp, in NumPy's float64."""
    loop, _ = filled(TINY, key)
    batch = herjax.sample(loop.buffer, key, 16, hindsight_ratio=1.0)
    states, goals = (
        np.asarray(each, np.float64)
        for each in (
            crl.represent(TINY, loop.params, batch.transition.observation, batch.transition.action),
            crl.represent_goal(TINY, loop.params, batch.goal.goal),
        )
    )
    logits = -np.sqrt(((states[:, None] - goals[None]) ** 2).sum(axis=-1) + 1e-6)
    by_state, by_goal = logsumexp(logits, axis=1), logsumexp(logits, axis=0)
    expected = np.mean(by_state - np.diag(logits)) + np.mean(by_goal - np.diag(logits)) + TINY.penalty * np.mean(by_state**2)
    np.testing.assert_allclose(crl.critic_loss(TINY, loop.params, batch), expected, rtol=1e-4)


def test_densities_are_those_of_squashed_normals(key: jax.Array) -> None:
    """The logarithm of an action's density is the normal's, less that of tanh's slope."""
    mean, log_deviation = jnp.array([[0.3, -1.0]]), jnp.array([[-0.5, -1.5]])
    action, log_density = crl.draw_action(mean, log_deviation, key)
    raw = np.arctanh(np.asarray(action, np.float64))
    expected = stats.norm.logpdf(raw, mean, np.exp(log_deviation)) - np.log(1 - np.tanh(raw) ** 2)
    np.testing.assert_allclose(log_density, expected.sum(axis=-1), rtol=1e-4)


def test_the_actors_loss_leaves_the_critic_alone(key: jax.Array) -> None:
    """The actor's loss moves the actor and the temperature alone."""
    loop, _ = filled(TINY, key)
    batch = herjax.sample(loop.buffer, key, 16, hindsight_ratio=1.0)
    gradients = jax.grad(lambda params: crl.actor_loss(TINY, params, batch, key))(loop.params)
    for leaf in jax.tree.leaves((gradients.state_encoder, gradients.goal_encoder)):
        np.testing.assert_array_equal(leaf, 0)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradients.actor))
    assert gradients.log_temperature != 0


def test_the_actor_is_scored_under_its_batchs_goals(key: jax.Array) -> None:
    """Without weight on entropy its loss is minus the mean score of its actions."""
    loop, _ = filled(TINY, key)
    batch = herjax.sample(loop.buffer, key, TINY.batch_size, hindsight_ratio=1.0)
    params = loop.params._replace(log_temperature=jnp.float32(-100))
    goal = batch.goal.goal
    action, _ = crl.draw_action(*crl.policy(TINY, params, batch.transition.observation, goal, 2), key)
    states = crl.represent(TINY, params, batch.transition.observation, action)
    scores = -np.linalg.norm(np.asarray(states) - np.asarray(crl.represent_goal(TINY, params, goal)), axis=-1)
    np.testing.assert_allclose(crl.actor_loss(TINY, params, batch, key), -scores.mean(), rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_actors_goals_are_pursued_or_in_hindsight(share: float, key: jax.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic sees hindsight goals alone, the actor its share, and else what was pursued, of the same transitions."""
    config = dataclasses.replace(TINY, batch_size=400, actor_hindsight=share)
    loop, episodes = filled(config, key)
    seen: dict[str, herjax.Sample] = {}
    loss_of_critic, loss_of_actor = crl.critic_loss, crl.actor_loss

    def critic_loss(config: crl.Config, params: crl.Params, batch: herjax.Sample) -> jax.Array:
        seen["critic"] = batch
        return loss_of_critic(config, params, batch)

    def actor_loss(config: crl.Config, params: crl.Params, batch: herjax.Sample, key: jax.Array) -> jax.Array:
        seen["actor"] = batch
        return loss_of_actor(config, params, batch, key)

    monkeypatch.setattr(crl, "critic_loss", critic_loss)
    monkeypatch.setattr(crl, "actor_loss", actor_loss)
    crl.update(config, loop, key)
    np.testing.assert_array_equal(seen["actor"].transition.observation, seen["critic"].transition.observation)
    played, drawn = np.asarray(episodes.transitions.observation), np.asarray(seen["actor"].transition.observation)
    env = (played == drawn[:, None, None]).all(axis=-1).any(axis=1).argmax(axis=1)
    pursued = np.asarray(episodes.goal)[env]
    assert (seen["critic"].goal.goal != pursued).any(axis=-1).all()
    own = (seen["actor"].goal.goal == pursued).all(axis=-1)
    np.testing.assert_allclose(np.mean(own), 1 - share, atol=0.1 if 0 < share < 1 else 0)


@pytest.mark.parametrize(("target", "sign"), [(-10.0, 1), (0.6, -1)])
def test_the_temperature_falls_where_entropy_is_above_its_target(target: float, sign: int, key: jax.Array) -> None:
    """Its loss has the gradient of what entropy there is over what is asked for."""
    config = dataclasses.replace(TINY, entropy=target)
    loop, _ = filled(config, key)
    batch = herjax.sample(loop.buffer, key, 16, hindsight_ratio=1.0)
    gradients = jax.grad(lambda params: crl.actor_loss(config, params, batch, key))(loop.params)
    assert np.sign(gradients.log_temperature) == sign


def test_a_hot_actor_becomes_more_random(key: jax.Array) -> None:
    """Where entropy is nearly all that counts, a step down the gradient makes actions less likely."""
    loop, _ = filled(TINY, key)
    batch = herjax.sample(loop.buffer, key, 16, hindsight_ratio=1.0)
    params = loop.params._replace(log_temperature=jnp.float32(10))
    gradients = jax.grad(lambda params: crl.actor_loss(TINY, params, batch, key))(params).actor
    norm = optax.tree.norm(gradients)
    stepped = params._replace(actor=jax.tree.map(lambda leaf, by: leaf - 0.01 * by / norm, params.actor, gradients))

    def entropy(params: crl.Params) -> float:
        return -float(
            jnp.mean(crl.draw_action(*crl.policy(TINY, params, batch.transition.observation, batch.goal.goal, 2), key)[1])
        )

    assert entropy(stepped) > entropy(params) + 0.01


def test_actions_are_random_as_often_as_asked(key: jax.Array) -> None:
    """With epsilon 1 actions are uniform in [-1, 1], with 0 the policy's own; a greedy actor draws nothing."""
    params = crl.start(TINY, key).params
    seen, goal = jnp.zeros((4000, 8)), jnp.zeros((4000, 2))
    always, never = (
        crl.behave(dataclasses.replace(TINY, epsilon=epsilon), params, greedy=False)(seen, goal, key) for epsilon in (1.0, 0.0)
    )
    np.testing.assert_allclose(np.std(always, axis=0), 3**-0.5, atol=0.03)
    own, _ = crl.draw_action(*crl.policy(TINY, params, seen, goal, 2), jax.random.split(key, 3)[0])
    np.testing.assert_allclose(never, own, atol=1e-6)
    greedy = crl.behave(TINY, params, greedy=True)
    np.testing.assert_array_equal(greedy(seen, goal, key), greedy(seen, goal, jax.random.key(1)))


def test_priorities_are_how_far_goals_are(key: jax.Array) -> None:
    """After an update, what it drew is drawn in proportion to the distance between its goal and what it achieved."""
    config = dataclasses.replace(TINY, num_envs=8, batch_size=64)  # In most episodes the puck is never touched.
    loop, _ = filled(config, key)
    batch = herjax.sample(loop.buffer, jax.random.split(key)[0], config.batch_size, hindsight_ratio=1.0)
    after, _ = crl.update(config, loop, key)
    apart = np.linalg.norm(np.asarray(batch.goal.goal - batch.transition.achieved_goal), axis=-1)
    expected = {index: distance + 0.01 for index, distance in zip(batch.indices.tolist(), apart, strict=True)}
    many = herjax.sample(after.buffer, key, 20_000, hindsight_ratio=1.0)
    drawn = dict(zip(many.indices.tolist(), many.probabilities.tolist(), strict=True))
    assert len(set(expected) & set(drawn)) >= 5
    ratios = [drawn[index] / expected[index] for index in expected if index in drawn]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    assert np.ptp(list(expected.values())) > 0.05, "they differ"


def test_no_key_is_used_twice_in_the_whole_training() -> None:
    """From the first parameter to the last evaluation the key-reuse checker finds nothing; losses are finite."""
    with jax.debug_key_reuse(True):
        metrics = jax.jit(partial(crl.train, TINY))(jax.random.key(0))
    assert np.isfinite(metrics["critic_loss"]).all()
    assert metrics["success_rate"].shape == (2,)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--batch-size", "1"], "--batch-size is 1; give at least 2."),
        (["--entropy", "nan"], "--entropy is nan; give a finite number."),
    ],
)
def test_bad_flags_are_refused_in_one_line(options: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        crl.main(options)
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"


@pytest.mark.slow
def test_it_reaches_without_a_reward() -> None:
    """In 128,000 steps two seeds reach four of five goals of PlanarReach."""
    config = dataclasses.replace(crl.Config(), task="reach", cycles=160, eval_every=20, progress=False)
    metrics = jax.jit(jax.vmap(partial(crl.train, config)))(jax.random.split(jax.random.key(0), 2))
    assert metrics["success_rate"][:, -1].min() >= 0.8
