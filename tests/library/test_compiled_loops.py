"""What the guide to loops says of a user's own: which are in place, on a CPU, and compiled for a GPU and a TPU not there."""

import importlib.util
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import pytest

import compiled_loops
from compiled_loops import SETTINGS, STEPS_BY_NAME

SMALL = 0.02
"""Temporaries over the buffer, up to which a loop counts as in place. A copied tree, the least that is copied, takes 0.07."""
SMALL_ON_TPU = 0.06
"""A TPU pads what is read of the buffer."""

WITHOUT_PRIORITIES = {setting for setting in SETTINGS if "priority_exponent" not in SETTINGS[setting]}
WITH_PRIORITIES = SETTINGS.keys() - WITHOUT_PRIORITIES
COPIED: dict[str, dict[str, set[str]]] = {
    "cpu": {
        "learn_then_act_as_before": WITHOUT_PRIORITIES,
        "skip_now_and_then": WITH_PRIORITIES,
        "two_branches_write": set(SETTINGS),
        "two_batches": WITH_PRIORITIES,
    },
    "cuda": {
        "learn_now_and_then": WITH_PRIORITIES,
        "learn_when_ready": WITH_PRIORITIES,
        "skip_now_and_then": WITH_PRIORITIES,
        "end_in_a_branch": set(SETTINGS),
        "act_in_a_branch": set(SETTINGS),
        "all_in_a_branch": set(SETTINGS),
        "two_branches_write": set(SETTINGS),
    },
    "tpu": {"learn_then_act_as_before": WITHOUT_PRIORITIES, "two_branches_write": set(SETTINGS)},
}
"""By platform and loop: the settings of a buffer that XLA copies there."""

QUICK = list(product(STEPS_BY_NAME, SETTINGS))[::5]
"""Every loop with two or three settings, and, as 5 does not divide their number, every setting with some loops."""
assert {setting for _, setting in QUICK} == SETTINGS.keys()


@pytest.mark.parametrize(("name", "setting"), QUICK)
def test_a_loop_copies_no_buffer_but_where_the_guide_says_so(name: str, setting: str) -> None:
    """On the CPU: the temporaries are small, or as large as what is copied; one run or three vmapped.

    From jax 0.11 on, some of what was copied is in place.
    """
    seeds = 1 if QUICK.index((name, setting)) % 2 else 3
    found = compiled_loops.temporaries(STEPS_BY_NAME[name], setting, seeds=seeds)
    copied = setting in COPIED["cpu"].get(name, set())
    assert found <= SMALL or copied, found
    assert found > SMALL or not copied or jax.__version_info__ >= (0, 11), found


@pytest.mark.parametrize(
    ("step", "setting", "copied"),
    [
        (compiled_loops.learn_when_ready, "uniform", False),
        (compiled_loops.learn_when_ready, "prioritised", False),
        (compiled_loops.learn_when_each_is_ready, "prioritised", True),
    ],
)
def test_a_condition_that_differs_by_run_copies_unless_in_all_runs(
    step: compiled_loops.Step, setting: str, copied: bool
) -> None:
    """As the help of `in_all_runs` says, where runs are vmapped."""
    assert (compiled_loops.temporaries(step, setting, seeds=3) > SMALL) == copied


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 8])
@pytest.mark.parametrize(("platform", "plugin"), [("cpu", "jax"), ("cuda", "jax_plugins.xla_cuda12"), ("tpu", "libtpu")])
def test_every_loop_on_every_platform(platform: str, plugin: str, seeds: int) -> None:
    """All loops with all settings, compiled for a machine that need not be there."""
    try:
        there = importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        pytest.skip(f"{plugin} is not installed")
    command = [sys.executable, Path(compiled_loops.__file__), "--platform", platform, "--seeds", str(seeds)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {(name, setting): value for setting, loops in json.loads(printed).items() for name, value in loops.items()}
    small = SMALL_ON_TPU if platform == "tpu" else SMALL
    copied = {(name, setting) for (name, setting), value in found.items() if value > small}
    expected = {(name, setting) for name, settings in COPIED[platform].items() for setting in settings}
    if (platform, seeds) == ("tpu", 1):
        expected -= {("two_branches_write", setting) for setting in SETTINGS if setting.startswith("late goals")}
        late = {setting for setting in WITHOUT_PRIORITIES if "relabel" in SETTINGS[setting]}
        expected -= {("learn_then_act_as_before", setting) for setting in late}
    assert copied == expected
    assert len(found) == len(STEPS_BY_NAME) * len(SETTINGS)
