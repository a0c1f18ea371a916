"""`hf-heads export --portable`: an older folder gets its code, and nothing else about it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertModel, dynamic_module_utils

from hf_heads import models
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.export.portable import make_portable
from tests.support.cli import Run, check_refused, leftovers
from tests.support.twins import TWINS

OLDER = Path(__file__).parents[2] / "regression" / "format-1"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    folder = tmp_path / "older"
    shutil.copytree(OLDER / "bert" / "collab", folder)
    (folder / "heads_remote.py").write_text("from hf_heads.models import HeadsBertModel\n")
    (folder / "README.md").write_text(
        "# It\n\n## Use\n\n```python\nimport hf_heads\n\n"
        'model = AutoModel.from_pretrained("somebody/it")\n```\n\n## Blocks\n\nas they are\n'
    )
    return folder


def test_an_older_folder_gets_its_code(run: Run, older: Path):
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    found = run("export", "--portable", older, "--json")
    assert found.code == 0, found.err
    assert found.json == {"output": str(older), "code": "modeling_heads_bert.py"}
    assert set(leftovers(older)) == {*before, "modeling_heads_bert.py"} - {"heads_remote.py"}
    assert (older / "model.safetensors").read_bytes() == before["model.safetensors"]
    was, now = json.loads(before["config.json"]), json.loads((older / "config.json").read_text())
    assert {name for name in was if was[name] != now[name]} == {"auto_map", "fusion_config"}
    card = (older / "README.md").read_text()
    assert 'from_pretrained("somebody/it", trust_remote_code=True)' in card and "`modeling_heads_bert.py`" in card
    assert card.startswith("# It\n") and card.endswith("## Blocks\n\nas they are\n")
    assert run("export", "--portable", older).code == 0  # once more changes nothing
    assert (older / "README.md").read_text() == card
    assert run("inspect", older).code == 0


def test_where_hf_heads_is_imported_its_own_classes_are_taken(
    older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    make_portable(resolve_source(str(older)))
    for trust in (True, False, None):
        assert type(AutoModel.from_pretrained(older, trust_remote_code=trust)) is models.HeadsBertModel
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        BertModel.from_pretrained(older)
    assert not (tmp_path / "modules").exists()


def test_what_has_no_code_of_ours_is_refused(run: Run, older: Path, tmp_path: Path):
    torch.manual_seed(0)
    TWINS["bert"].model().save_pretrained(tmp_path / "native")
    check_refused(run("export", "--portable", tmp_path / "native"), "is not converted")
    check_refused(run("export", older), "--portable", code=2)
