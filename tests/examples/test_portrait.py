"""The page about the heads of a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import portrait
from tests.support.files import save_checkpoint
from tests.support.twins import TWINS


@pytest.mark.full  # three programs, one of which tries a handful of conversions
def test_a_portrait_has_its_pictures_and_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_checkpoint(TWINS["bert"].model(), tmp_path / "twin")
    words = ["--model", str(folder), "--samples", "16", "--output", str(tmp_path / "portrait")]
    target = portrait.main(words)
    text = target.read_text(encoding="utf-8")
    for picture in re.findall(r'src="([^"]+)"', text):
        assert (target.parent / picture).stat().st_size > 5000
    assert text.count("<tr>") >= 2 and "hf-heads convert" in text and "Heads of twin" in text
    with pytest.raises(SystemExit):
        portrait.main(words)
    assert "exists already" in capsys.readouterr().err


@pytest.mark.full
def test_a_portrait_of_nothing_leaves_nothing(tmp_path: Path):
    with pytest.raises(SystemExit, match="nowhere"):
        portrait.main(["--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "portrait")])
    assert not list(tmp_path.iterdir())
