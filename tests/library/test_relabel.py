"""Relabelling: which hindsight goals each strategy draws, with what probability, and what is recomputed for them.

Transition `10 * episode + step` achieves a goal that holds this number, so that every goal names its source. A buffer is
read whole through `sample`: stratified over equal priorities, 2 draws for each copy reach them all.
All keys are fixed, and thresholds are such that a right library would fail a test under fewer than one key in a million.
"""

from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy import stats

import herjax
from distributions import FALSE_ALARM_RATE, STRATEGIES, WITHIN_EPISODE, geometric_distribution, name_of, past
from numbered import decode, goal, make_of_fields, transition

DESIRED_ID = -100
NUM_BUFFERS = 200
NUM_GOALS = 32
CAPACITY = 16
MAX_EPISODE_LENGTH = 8


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
within_episode = pytest.mark.parametrize(("strategy", "distribution"), WITHIN_EPISODE.values(), ids=WITHIN_EPISODE.keys())


def init(strategy, *, num_goals: int = NUM_GOALS, **options):
    """NUM_BUFFERS empty buffers: everything below happens to all of them, and only their keys differ."""
    buffer = make_of_fields(
        capacity=CAPACITY,
        max_episode_length=MAX_EPISODE_LENGTH,
        strategy=strategy,
        num_goals=num_goals,
        priority_exponent=1.0,
        **options,
    )
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (NUM_BUFFERS, *leaf.shape)), buffer)


add_to_each = jax.jit(jax.vmap(herjax.add, in_axes=(0, None)))
end_each = jax.jit(
    jax.vmap(lambda buffer, key, done: herjax.end_episode(buffer, goal(DESIRED_ID), key, done), in_axes=(0, 0, None))
)
draw_from_each = jax.jit(
    jax.vmap(lambda buffer: herjax.sample(buffer, jax.random.key(3), 2 * CAPACITY * (1 + NUM_GOALS))),
)


def episode_ids(episode: int, length: int) -> np.ndarray:
    return 10 * episode + np.arange(length)


def add(buffers, ids):
    """Adds the transitions of these ids, one after the other."""
    for transition_id in ids:
        buffers = add_to_each(buffers, transition(transition_id))
    return buffers


def end(buffers, *, seed: int = 0, done: bool = True):
    """Ends the running episodes, which pursued a goal that nobody achieves; each buffer draws with a key of its own."""
    return end_each(buffers, jax.random.split(jax.random.key(seed), NUM_BUFFERS), jnp.array(done))


def play(buffers, lengths, *, first: int = 1):
    """Plays whole episodes of these lengths, numbered from `first`."""
    for episode, length in enumerate(lengths, start=first):
        buffers = end(add(buffers, episode_ids(episode, length)), seed=episode)
    return buffers


def sizes(buffers) -> np.ndarray:
    return np.asarray(jax.vmap(herjax.size)(buffers))


def copies_of(buffers, num_copies: int):
    """Every copy that each buffer holds, in the order of their indices: arrays [NUM_BUFFERS, num_copies, ...]."""
    batch = jax.tree.map(np.asarray, draw_from_each(buffers))
    first_draws = [np.unique(indices, return_index=True)[1] for indices in batch.indices]
    assert {len(first) for first in first_draws} == {num_copies}, "the buffers hold another number of copies"
    np.testing.assert_allclose(batch.probabilities, 1 / num_copies, rtol=1e-5)
    rows = np.arange(NUM_BUFFERS)[:, None]
    return jax.tree.map(lambda leaf: leaf[rows, np.stack(first_draws)], batch)


def hindsight_goals(copies, transition_id: int) -> np.ndarray:
    """Ids of this transition's hindsight goals: [NUM_BUFFERS, goals]."""
    chosen = copies.is_hindsight & (copies.transition.number == transition_id)
    return copies.goal["number"][chosen].reshape(NUM_BUFFERS, -1)


def goals_per_transition(strategy) -> int:
    return 1 if strategy == "final" else NUM_GOALS


@cache
def episode_of_5(strategy):
    """The copies after episodes of 3 and of 5 steps."""
    return copies_of(play(init(strategy), [3, 5]), num_copies=8 * (1 + goals_per_transition(strategy)))


def assert_drawn_from(goals: np.ndarray, ids: np.ndarray, distribution: np.ndarray, num_tables: int) -> None:
    """The goals are exactly those of positive probability, as often as a chi-square test at 1e-6 / num_tables allows."""
    possible = distribution > 0
    assert set(np.unique(goals)) == set(ids[possible])
    if possible.sum() > 1:
        counts = np.array([(goals == goal_id).sum() for goal_id in ids[possible]])
        expected = goals.size * distribution[possible]
        assert expected.min() > 50, "too few draws for the chi-square approximation"
        assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM_RATE / num_tables


@within_episode
def test_each_step_draws_its_goals_from_the_strategys_distribution(strategy, distribution):
    """In an episode of 5 of at most 8 steps, each step reaches exactly the goals that the strategy allows, as often.

    It has `num_goals` of them, `final` one.
    """
    copies = episode_of_5(strategy)
    for step, transition_id in enumerate(episode_ids(2, 5)):
        goals = hindsight_goals(copies, transition_id)
        assert goals.shape == (NUM_BUFFERS, goals_per_transition(strategy))
        assert_drawn_from(goals, episode_ids(2, 5), distribution(step, 5), num_tables=5)


@pytest.mark.parametrize("lengths", [[8], [8, 8, 8, 8], [8, 2, 1, 7, 3, 8]], ids=["first", "full", "uneven"])
def test_random_draws_uniformly_from_all_finished_transitions_held(lengths):
    """The goals of the episode ended last come from every transition still held, its own included, and from no other.

    The longer runs have evicted the first episode. Transition 999 came too late for its episode and was dropped; it is no
    goal source either.
    """
    last = episode_ids(len(lengths), lengths[-1])
    buffers = end(add(play(init("random"), lengths[:-1]), [*last, 999]), seed=99)
    num_held = int(sizes(buffers)[0])
    copies = copies_of(buffers, num_copies=num_held * (1 + NUM_GOALS))

    held = np.sort(copies.transition.number[0][~copies.is_hindsight[0]])
    assert set(last) <= set(held)
    assert (10 in held) == (len(lengths) == 1), "this test needs an evicted episode"
    for transition_id in last:
        assert_drawn_from(hindsight_goals(copies, transition_id), held, np.full(num_held, 1 / num_held), num_tables=8)
    np.testing.assert_array_equal(buffers.num_dropped, 1)


def assert_independent(one: np.ndarray, other: np.ndarray, num_tables: int) -> None:
    _, table = stats.contingency.crosstab(one.ravel(), other.ravel())
    assert stats.chi2_contingency(table, correction=False).pvalue > FALSE_ALARM_RATE / num_tables


@pytest.mark.parametrize("strategy", ["future", "episode", "random", past, herjax.geometric(0.5)], ids=name_of)
def test_goals_are_independent_across_copies_and_steps(strategy):
    """Neither 2 goals of one step nor the goals of 2 steps show an association, in the middle steps of an episode of 5."""
    goals = [hindsight_goals(episode_of_5(strategy), transition_id) for transition_id in (21, 22, 23)]
    for step in goals:
        assert_independent(step[:, ::2], step[:, 1::2], num_tables=9)
        assert_independent(step[:, : NUM_GOALS // 2], step[:, NUM_GOALS // 2 :], num_tables=9)
    for one, other in combinations(goals, 2):
        assert_independent(one, other, num_tables=9)


def test_final_has_one_hindsight_goal_with_num_goals_1():
    """With `num_goals=1` `final` gives one hindsight goal, as it does with more in the other tests."""
    copies = copies_of(play(init("final", num_goals=1), [3]), num_copies=6)
    for transition_id in episode_ids(1, 3):
        np.testing.assert_array_equal(hindsight_goals(copies, transition_id), np.full((NUM_BUFFERS, 1), 12))


@pytest.mark.parametrize("strategy", ["future", "final", "random"])
def test_num_goals_0_turns_hindsight_off(strategy):
    """With `num_goals=0` a transition has one copy, with the goal that its episode pursued, `final` and `random` included."""
    copies = copies_of(play(init(strategy, num_goals=0), [3, 4]), num_copies=7)
    assert not copies.is_hindsight.any()
    np.testing.assert_array_equal(copies.goal["number"], DESIRED_ID)
    np.testing.assert_array_equal(np.sort(copies.transition.number)[0], [*episode_ids(1, 3), *episode_ids(2, 4)])
    decode(copies)


@every_strategy
def test_every_goal_has_its_own_reward_and_termination(strategy):
    """Reward, `terminated` and goal fit the transition of every copy, also after episodes of all lengths went round the buffer.

    Each goal comes from the same episode, at a step that the strategy allows; with `random`, from an episode so far.
    """
    lengths = [3, 8, 1, 4, 2, 5, 8, 3, 1, 1, 4, 5, 2]
    buffers = play(init(strategy), lengths)
    copies = copies_of(buffers, num_copies=int(sizes(buffers)[0]) * (1 + goals_per_transition(strategy)))
    decode(copies)
    assert set(episode_ids(13, 2)) <= set(copies.transition.number[0])

    sources = np.stack([copies.transition.number, copies.goal["number"]], axis=-1)[copies.is_hindsight]
    for transition_id, goal_id in np.unique(sources, axis=0):
        (episode, step), (goal_episode, goal_step) = divmod(transition_id, 10), divmod(goal_id, 10)
        assert goal_step < lengths[goal_episode - 1]
        if strategy == "random":
            assert 1 <= goal_episode <= episode
        else:
            assert goal_episode == episode
            distribution = next(distribution for other, distribution in WITHIN_EPISODE.values() if other is strategy)
            assert distribution(step, lengths[episode - 1])[goal_step] > 0


def test_without_terminated_fn_a_sample_has_no_terminated():
    """`terminated_fn=None`: `batch.terminated` is None."""
    batch = jax.eval_shape(draw_from_each, init("future", terminated_fn=None))
    assert batch.terminated is None
    assert batch.reward.dtype == jnp.float32


@every_strategy
def test_an_unfinished_episode_neither_changes_nor_gives_goals(strategy):
    """`end_episode` with `done=False` draws nothing; the episode goes on, and once ended it is one episode of 5 steps."""
    num_hindsight = goals_per_transition(strategy)
    finished = play(init(strategy), [3])
    before = copies_of(finished, num_copies=3 * (1 + num_hindsight))
    running = end(add(finished, episode_ids(2, 3)), seed=7, done=False)
    after = copies_of(running, num_copies=3 * (1 + num_hindsight))
    jax.tree.map(np.testing.assert_array_equal, after, before)

    ended = end(add(running, episode_ids(2, 5)[3:]), seed=2)
    in_one_go = episode_of_5(strategy)
    jax.tree.map(np.testing.assert_array_equal, copies_of(ended, num_copies=8 * (1 + num_hindsight)), in_one_go)


@pytest.mark.parametrize("strategy", ["future", "episode", "random", past, herjax.geometric(0.5)], ids=name_of)
def test_the_key_alone_decides_the_goals(strategy):
    """The same keys draw the same goals again, and no 2 of the vmapped keys draw the same goals for a whole episode."""
    copies = episode_of_5(strategy)
    again = copies_of(play(init(strategy), [3, 5]), num_copies=8 * (1 + NUM_GOALS))
    jax.tree.map(np.testing.assert_array_equal, again, copies)
    assert len({tuple(goals) for goals in copies.goal["number"]}) == NUM_BUFFERS
    other_keys = copies_of(end(add(play(init(strategy), [3]), episode_ids(2, 5)), seed=77), num_copies=8 * (1 + NUM_GOALS))
    assert (other_keys.goal["number"] != copies.goal["number"]).any(axis=1).all()


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_a_vmapped_buffer_draws_what_it_draws_alone(make_key):
    """Under `vmap` over seeds each buffer gets the goals that its key gives without `vmap`, for both styles of key."""
    running = jax.tree.map(lambda leaf: leaf[0], add(init("future"), episode_ids(1, 5)))
    copies = copies_of(end(add(init("future"), episode_ids(1, 5)), seed=5), num_copies=5 * (1 + NUM_GOALS))
    key = jax.random.split(make_key(5), NUM_BUFFERS)[8]
    alone = herjax.end_episode(running, goal(DESIRED_ID), key)
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (NUM_BUFFERS, *leaf.shape)), alone)
    goals = copies_of(repeated, num_copies=5 * (1 + NUM_GOALS)).goal["number"]
    np.testing.assert_array_equal(goals[0], copies.goal["number"][8])


def test_a_custom_strategy_is_given_a_key_and_int32_scalars(key):
    """A custom strategy sees one key, one step and one length: unbatched, and the latter two int32."""
    seen = []

    def strategy(key, step, length):
        seen.append((key.shape, key.dtype, step.shape, step.dtype, length.shape, length.dtype))
        return step

    end(add(init(strategy), episode_ids(1, 3)))
    assert set(seen) == {((), key.dtype, (), jnp.dtype("int32"), (), jnp.dtype("int32"))}


def mirrored(key, step, length):
    """The step as far from the end as this one is from the start."""
    del key
    return length - 1 - step


def astray(key, step, length):
    """Steps 0 and 1 name steps far outside of the episode on either side, the others their mirror image."""
    return jnp.select([step == 0, step == 1], [jnp.int32(-5555), jnp.int32(7777)], mirrored(key, step, length))


def far_after(key, step, length):
    del key, length
    return step + 7777


def far_before(key, step, length):
    del key, length
    return step - 5555


def fourth(key, step, length):
    del key, step, length
    return jnp.int32(3)


def test_a_goal_step_outside_the_episode_is_clipped_into_it():
    """A step before the start becomes the first, one past the end the last, and the steps inside are taken as they are."""
    copies = copies_of(play(init(astray), [3, 5]), num_copies=8 * (1 + NUM_GOALS))
    for transition_id, expected in zip(episode_ids(2, 5), (20, 24, 22, 21, 20), strict=True):
        np.testing.assert_array_equal(hindsight_goals(copies, transition_id), expected)
    decode(copies)


def running_episode(strategy, length: int, *, num_goals: int = 1):
    """One buffer, unbatched, with an episode that has not ended."""
    return jax.tree.map(lambda leaf: leaf[0], add(init(strategy, num_goals=num_goals), episode_ids(1, length)))


def reported(end_episode, *arguments) -> str:
    """What checkify reports of this call; empty when it reports nothing."""
    error, _ = checkify.checkify(end_episode)(*arguments)
    return error.get() or ""


@pytest.mark.parametrize(
    ("transform", "strategy", "wrong"),
    [(jax.jit, far_after, range(7777, 7782)), (jax.vmap, far_before, range(-5555, -5550))],
    ids=["jit", "vmap"],
)
def test_a_goal_step_outside_the_episode_is_reported_under_checkify(transform, strategy, wrong, key):
    """The report names the strategy and a step that it gave."""
    buffer = running_episode(strategy, 5)
    keys = jax.random.split(key, 3) if transform is jax.vmap else key
    report = reported(transform(lambda key: herjax.end_episode(buffer, goal(DESIRED_ID), key)), keys)
    assert "strategy" in report
    assert any(str(step) in report for step in wrong)


def test_checkify_reports_a_step_that_is_outside_in_one_of_the_vmapped_buffers(key):
    """Step 3 is right for episodes of 4 and 5 steps; one buffer with an episode of 2 among them makes it a fault."""

    def outcome(lengths):
        buffers = [running_episode(fourth, length) for length in lengths]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *buffers)
        return reported(jax.vmap(lambda buffer: herjax.end_episode(buffer, goal(DESIRED_ID), key)), stacked)

    assert outcome([4, 5, 4]) == ""
    report = outcome([4, 2, 5])
    assert "strategy" in report
    assert "3" in report


@pytest.mark.parametrize("strategy", [mirrored, herjax.geometric(0.5)], ids=name_of)
def test_checkify_reports_no_strategy_that_stays_in_the_episode(strategy, key):
    """Nothing is reported of an episode of 3 of at most 8 steps: what the strategy would say of steps 3 .. 7 is no fault."""
    assert reported(herjax.end_episode, running_episode(strategy, 3), goal(DESIRED_ID), key) == ""


def test_checkify_reports_only_goals_that_are_drawn(key):
    """Beside a vmapped buffer whose episode of 5 ends, step 3 is no fault where none is pending, or 2 steps that go on."""
    buffers = [running_episode(fourth, length) for length in (5, 0, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *buffers)
    end = jax.vmap(lambda buffer, done: herjax.end_episode(buffer, goal(DESIRED_ID), key, done))
    assert reported(end, stacked, jnp.array([True, True, False])) == ""
    assert "strategy" in reported(end, stacked, jnp.array([True, True, True]))


def test_checkify_reports_no_strategy_with_num_goals_0(key):
    """Where no hindsight goal is drawn, a strategy that would err is not reported."""
    assert reported(herjax.end_episode, running_episode(far_after, 3, num_goals=0), goal(DESIRED_ID), key) == ""


@pytest.mark.parametrize("discount", [0, 0.5, 0.9, 1])
def test_geometric_reaches_each_later_step_with_its_probability(discount):
    """From each step of an episode of 5, geometric names step + j with probability proportional to discount^j."""
    draw = jax.vmap(jax.vmap(herjax.geometric(discount), in_axes=(0, None, None)), in_axes=(0, 0, None))
    keys = jax.random.split(jax.random.key(4), (5, 20_000))
    drawn = np.asarray(jax.jit(draw)(keys, jnp.arange(5, dtype=jnp.int32), jnp.int32(5)))
    for step in range(5):
        assert_drawn_from(drawn[step], np.arange(5), geometric_distribution(discount)(step, 5), num_tables=5)


@pytest.mark.parametrize("discount", [0, 0.5, 0.99, 1])
def test_geometric_names_a_step_of_a_long_episode(discount):
    """From step 100 of 200, geometric names step 100 + j with probability proportional to discount^j, as an int32 scalar."""
    draw = jax.jit(jax.vmap(herjax.geometric(discount), in_axes=(0, None, None)))
    steps = draw(jax.random.split(jax.random.key(4), 20_000), jnp.int32(100), jnp.int32(200))
    assert steps.shape == (20_000,)
    assert steps.dtype == jnp.int32
    counts = np.bincount(np.asarray(steps), minlength=200)
    assert len(counts) == 200

    expected = 20_000 * geometric_distribution(discount)(100, 200)
    rare = expected < 50
    counts, expected = (np.append(table[~rare], table[rare].sum()) for table in (counts, expected))
    counts, expected = counts[expected > 1e-3], expected[expected > 1e-3]
    assert counts.sum() == 20_000
    if len(counts) > 1:
        assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM_RATE


@pytest.mark.parametrize("discount", [0, 0.5, 1])
def test_geometric_at_the_last_step_names_the_last_step(discount, key):
    """Step length - 1 has one choice, in an episode of 1 step too."""
    strategy = herjax.geometric(discount)
    assert strategy(key, jnp.int32(6), jnp.int32(7)) == 6
    assert strategy(key, jnp.int32(0), jnp.int32(1)) == 0


def test_geometrics_of_one_discount_are_equal():
    """`geometric(d) == geometric(d)`, with one hash, so that a second call compiles nothing; other discounts differ."""
    assert herjax.geometric(0.9) == herjax.geometric(0.9)
    assert hash(herjax.geometric(0.9)) == hash(herjax.geometric(0.9))
    assert herjax.geometric(0.9) != herjax.geometric(0.8)
    assert herjax.geometric(0.9) != "future"
    one, other = (jax.tree.structure(init(herjax.geometric(0.9), num_goals=2)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("discount", [-0.1, 1.5, float("nan"), float("inf")])
def test_geometric_takes_a_discount_from_0_to_1(discount):
    """Any other discount raises, and the message names it."""
    with pytest.raises(ValueError, match="discount") as error:
        herjax.geometric(discount)
    assert str(discount) in str(error.value)
