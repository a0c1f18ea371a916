"""The code that a checkpoint carries, as text: whole, clean, and of this package's sources alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_heads import HeadsError
from hf_heads.attention.hosts.table import ADAPTERS, AttentionAdapter, AttentionSite
from hf_heads.methods import registry
from hf_heads.modeling.portable.bundle import Bundle
from hf_heads.modeling.portable.literals import Name, literal, named_in
from hf_heads.modeling.portable.writing import LEFT_OUT, can_carry, module_name, module_text

ROOT = Path(__file__).parents[3]
BUILT_IN = tuple(name for name in registry.all_methods() if registry.built_in(name))
FROM = {
    "pack.low": "import math\n\nSIZE = 3\n\n\ndef half(x):\n    return x / SIZE\n\n\ndef unused():\n    return gone\n",
    "pack.high": "from __future__ import annotations\n\nfrom pack.low import half\n\n\nclass Thing:\n    # Why.\n"
    "    @property\n    def gone(self):\n        return math.pi\n\n    def stays(self):\n        return half(4)\n",
}


def bundled(sources: dict[str, str], module: str, name: str) -> str:
    bundle = Bundle("pack", ("gone",), sources)
    bundle.take(module, name)
    return bundle.text()


def test_a_name_comes_with_what_it_needs_in_an_order_that_runs():
    text = bundled(FROM, "pack.high", "Thing")
    space: dict[str, Any] = {}
    exec(text, space)
    assert space["Thing"]().stays() == 4 / 3 and not hasattr(space["Thing"], "gone")
    assert "unused" not in text and "Why" not in text and "import math" not in text
    assert text.index("SIZE = 3") < text.index("def half") < text.index("class Thing")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from pack.high import Thing\n\nhalf = 2\n\n\nclass All(Thing):\n    x = half\n", "half is"),
        ("from pack import low\n\n\nclass All:\n    x = low\n", "pack"),
        ("from pack.low import absent\n\n\nclass All:\n    x = absent\n", "does not define absent"),
        ("from pack.low import half as h\n\n\nclass All:\n    x = h\n", "as they are"),
    ],
)
def test_what_cannot_stand_in_one_module_is_refused(source: str, said: str):
    with pytest.raises((HeadsError, ImportError), match=said):
        bundled({**FROM, "pack.top": source}, "pack.top", "All")


KINDS = ("bert", "marian", "llama")
OTHERS = (
    "albert",
    "beit",
    "bloom",
    "clip",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "modernbert",
    "qwen3",
    "t5",
    "vit",
    "vit_mae",
)


@pytest.fixture(
    scope="module", params=[KINDS, pytest.param(OTHERS, marks=pytest.mark.full)], ids=("three hosts", "the others")
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of hosts of several kinds, once for each method and once with all."""
    place = tmp_path_factory.mktemp("code")
    for host in request.param:
        adapter = ADAPTERS[host]
        for methods in [*((name,) for name in BUILT_IN), BUILT_IN]:
            name = f"{host}_{'all' if methods == BUILT_IN else methods[0]}.py".replace("-", "_")
            (place / name).write_text(module_text(adapter, methods))
    return place


def test_it_is_clean(folder: Path):
    # Some of transformers' insides are wrapped in one module of the package, and methods documented where declared.
    for command in (["check", "--ignore", "TID251,D102"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(folder)]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_it_imports_torch_and_transformers_alone_and_knows_only_its_methods(folder: Path):
    files = sorted(folder.iterdir())
    assert len(files) in [len(hosts) * (len(BUILT_IN) + 1) for hosts in (KINDS, OTHERS)]
    for path in files:
        tree = ast.parse(text := path.read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        packages = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
        assert packages <= {"torch", "transformers", "huggingface_hub"}, path.name
        assert "Made by hf-heads" in text and "checkpoints of format 1" in text
        found = re.findall(r"^class (\w+)Attention\(HeadsAttention\)", text, re.M)
        assert len(found) == (len(BUILT_IN) if path.name.endswith("_all.py") else 1), path.name
        asked = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not asked & {f"self.{name}" for name in LEFT_OUT}, path.name
        assert "def to_dense" not in text and "def from_dense" not in text


def test_what_other_packages_bring_is_not_handed_on():
    site = AttentionSite("self", r"layer\.\d+", memory="it's", heads="n")
    other = AttentionAdapter("odd", "text", (site,), package="odd.models")
    assert can_carry(ADAPTERS["bert"], ["collab"]) and not can_carry(other, ["collab"])
    assert not can_carry(ADAPTERS["bert"], ["collab", "gaussian"])
    assert module_name(other, ("collab",)) == "heads_remote"
    assert module_name(ADAPTERS["bert"], ("collab",)) == "modeling_heads_bert"


@pytest.mark.parametrize(
    "value", [("a",), (), "it's", 'a "b"', r"\d+'", {"a": (1, 2.5, None)}, True, *ADAPTERS.values()], ids=str
)
def test_a_literal_is_the_value(value: Any):
    names = {one.__name__: one for one in named_in(value)}
    assert eval(literal(value), names) == value
    assert all(len(line) <= 120 for line in literal(value, 4).splitlines())


def test_a_literal_may_name_and_refuses_what_it_has_no_code_for():
    assert literal({"a": (Name("Thing"), bundled)}) == '{"a": (Thing, bundled)}'
    assert list(named_in({"a": bundled})) == [bundled]
    with pytest.raises(HeadsError, match="no code"):
        literal([1])
    with pytest.raises(HeadsError, match="no code"):
        literal(lambda: 1)
