"""The pages beside README: the guides' code runs, and all pages are easy to read and lead somewhere."""

import statistics
from pathlib import Path

import numpy as np
import pytest

import pages


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("guide", pages.GUIDES, ids=lambda path: path.stem)
def test_every_block_of_a_guide_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "guide"}
    for block in pages.blocks(guide.read_text()):
        exec(block, namespace)


@pytest.mark.parametrize("guide", pages.GUIDES, ids=lambda path: path.stem)
def test_a_guide_is_short(guide: Path) -> None:
    """At most 120 lines, none of its text above 140 characters."""
    lines = guide.read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("page", pages.ALL, ids=lambda path: str(path.relative_to(pages.ROOT)))
def test_sentences_are_short(page: Path) -> None:
    """Half of them have at most 14 words, and none has more than 35."""
    words = {sentence: len(sentence.split()) for sentence in pages.sentences(page.read_text())}
    assert max(words.values()) <= 35, max(words, key=words.get)
    assert statistics.median(words.values()) <= 14


def test_sentences_are_found() -> None:
    """Headings, tables and code do not count; a link counts as its text; lists and paragraphs end a sentence."""
    page = "# A heading\nOne `a b c` two. [Three](four.md)\nfive\n\n| no | no |\n\n- six.\n- **Seven?** Eight\n"
    page += "\n```python\nno\n```\n"
    assert pages.sentences(page) == ["One code two.", "Three five", "six.", "Seven?", "Eight"]


@pytest.mark.parametrize("page", pages.ALL, ids=lambda path: str(path.relative_to(pages.ROOT)))
def test_the_files_that_a_page_links_to_are_there(page: Path) -> None:
    """Every relative link leads to a file or a folder."""
    for target in pages.links(page.read_text()):
        assert (page.parent / target).exists(), target


def test_observations_before_a_reset_as_the_page_says() -> None:
    """Gymnasium's `SAME_STEP`, one of two environments ending: the copy has its dict, and the other's observation."""
    gymnasium = pytest.importorskip("gymnasium")

    class Counts(gymnasium.Env):
        """Shows how many steps it has made, and ends after as many."""

        observation_space = gymnasium.spaces.Dict({"steps": gymnasium.spaces.Box(0, 9, (1,))})
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self, length: int) -> None:
            self.length, self.steps = length, 0

        def reset(self, **given: object) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            super().reset(**given)
            self.steps = 0
            return {"steps": np.zeros(1, np.float32)}, {}

        def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, object]]:
            del action
            self.steps += 1
            return {"steps": np.full(1, self.steps, np.float32)}, 0.0, False, self.steps >= self.length, {}

    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    envs = gymnasium.vector.SyncVectorEnv([lambda: Counts(1), lambda: Counts(2)], autoreset_mode=mode)
    envs.reset()
    then, _, terminated, truncated, info = envs.step(np.zeros(2, int))
    done = terminated | truncated
    last = {name: values.copy() for name, values in then.items()}
    for name, values in last.items():
        for i in np.flatnonzero(done):
            values[i] = info["final_obs"][i][name]
    assert (then["steps"].tolist(), last["steps"].tolist()) == ([[0], [1]], [[1], [1]])
    assert info["final_obs"][1] is None
    page = (pages.ROOT / "examples/guides/environments.md").read_text()
    assert 'copy `info["final_obs"][i][name]` into row `i` of a copy of `then[name]`' in page
