"""What one process does for all: it says so, it fails for all, and it has the others' threads."""

from __future__ import annotations

import pytest
import torch

from hf_heads.core.errors import HeadsError
from hf_heads.jobs.team import Team


@pytest.fixture
def main_of_two(monkeypatch: pytest.MonkeyPatch) -> Team:
    """The first of two processes of a machine, whose words all hear."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(Team, "agree", lambda _, word: word)
    monkeypatch.setattr("hf_heads.jobs.team.os.cpu_count", lambda: 64)
    return Team(0, 2)


def test_what_is_made_once_has_the_threads_of_all_that_wait(main_of_two: Team):
    before = torch.get_num_threads()
    assert main_of_two.once(torch.get_num_threads) == 2 * before
    assert torch.get_num_threads() == before
    assert Team().once(torch.get_num_threads) == before


def test_what_costs_much_is_shared_first():
    costs = [4, 0, 10, 8, 5]
    shares = [Team(rank, 2).share_by(costs) for rank in range(2)]
    assert shares == [[2, 0], [3, 4, 1]]
    assert Team().share_by(costs) == [2, 3, 4, 0, 1]


def test_what_fails_once_fails_for_all(main_of_two: Team):
    def fail() -> None:
        raise HeadsError("no")

    with pytest.raises(HeadsError, match="no"):
        main_of_two.once(fail)
