"""Writes `modeling_heads_<host>.py`: a host's derived classes, with the methods of one checkpoint, in one file."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from hf_heads.attention.hosts.parts import resolved
from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.attention.hosts.table import ADAPTERS
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.vocabulary import PREFIX, VERSION
from hf_heads.methods.registry import built_in, get_method
from hf_heads.modeling.auto_classes import auto_classes, host_config_class, served_classes
from hf_heads.modeling.guarded import FORMAT
from hf_heads.modeling.portable.bundle import Bundle
from hf_heads.modeling.portable.literals import Name, literal, named_in

# What a model does not do while it runs: standard weights, and what a refinement asks.
LEFT_OUT = ("to_dense", "fixed", "scores", "attended", "shared_values")
_HOST, _RUNNING = "hf_heads.modeling.portable.host", "hf_heads.modeling.portable.running"

_STUB = "heads_remote"
_STUB_TEXT = '''"""Reaches an installed hf-heads, where the classes of this checkpoint are made."""

from hf_heads.models import {names}  # noqa: F401
'''
_HEADER = '''"""The code that this checkpoint carries: {host} with re-parametrized attention heads.

Methods: {methods}.

`AutoModel.from_pretrained(PATH_OR_ID, trust_remote_code=True)`, or any AutoModelForX, takes its classes from here. It
needs torch and transformers 5.20 or newer, no other package; where hf_heads is imported, its classes are taken instead.

Made by hf-heads {version} from its own sources (Apache-2.0), for checkpoints of format {format}.
"""

'''
_SETTINGS = """\
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.dense import AttentionShape
"""
_OWN_BASE = "from hf_heads.attention.spec import HeadsSpec\n"
_HOST_IMPORTS = """\
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_heads.modeling.grafting import register_processors
from hf_heads.modeling.internals import rename_keys_like
from hf_heads.modeling.portable.running import PortableConfig, PortableModel
"""
_CONFIG = """
@strict
class Heads{config}(PortableConfig, {config}):
    \"""{config} with the settings of re-parametrized attention heads.\"""

    model_type = "{model_type}"
    heads: dict[str, Any] | None = None
    heads_row = {row}
    heads_methods = {methods}
    heads_classes = {classes}
"""
_MODEL = """

class Heads{native}(PortableModel, {native}):
    \"""{native} with re-parametrized attention heads.\"""

    config_class = Heads{config}
"""
_CLOSING = """

rename_keys_like("{prefix}{model_type}", "{model_type}")
register_processors(Heads{config}, "{model_type}")
"""


def can_carry(adapter: AttentionAdapter, methods: Collection[str]) -> bool:
    """Whether a checkpoint can carry its code: that of other packages is not ours to hand on."""
    return ADAPTERS.get(adapter.model_type) is adapter and all(built_in(name) for name in methods)


def module_name(adapter: AttentionAdapter, methods: tuple[str, ...]) -> str:
    """The name of the module that stands beside a checkpoint: its code, or what reaches hf-heads."""
    return f"modeling_{PREFIX}{adapter.model_type.replace('-', '_')}" if can_carry(adapter, methods) else _STUB


def derived_classes(adapter: AttentionAdapter) -> dict[str, str]:
    """The names of an architecture's derived model classes by the Auto class that they serve."""
    return {auto: f"Heads{native}" for auto, native in auto_classes(adapter).items()}


def write_code(folder: Path, adapter: AttentionAdapter, methods: tuple[str, ...]) -> None:
    """Write the module through which `trust_remote_code=True` loads a checkpoint, in the place of earlier ones.

    Args:
        folder: where the checkpoint is.
        adapter: the row of its architecture.
        methods: the names of the methods of its blocks.

    Raises:
        HeadsError: the sources of this package are not there.
    """
    name = module_name(adapter, methods)
    if name != _STUB:
        text = module_text(adapter, methods)
        (folder / f"{_STUB}.py").unlink(missing_ok=True)  # what versions before 0.2 wrote, and nobody else
    else:
        config = host_config_class(adapter)
        names = sorted({f"Heads{config.__name__}", *derived_classes(adapter).values()})
        text = _STUB_TEXT.format(names=", ".join(names))
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


@cache
def module_text(adapter: AttentionAdapter, methods: tuple[str, ...]) -> str:
    """The module that a checkpoint carries.

    Args:
        adapter: the row of its architecture.
        methods: the names of the methods of its blocks.

    Raises:
        HeadsError: the sources of this package are not there.
    """
    attentions = {name: get_method(name).attention for name in methods}
    specs = {name: get_method(name).spec.resolved() for name in methods}
    sources = {HeadsSpec.__module__: _settings(HeadsSpec, ("method", "heads"), attentions.values())}
    for name, spec in specs.items():
        sources[spec.__module__] = _settings(spec, _stored(spec), [attentions[name]])
    sources[_HOST] = _host(adapter, {name: (attentions[name], specs[name]) for name in methods})
    bundle = Bundle("hf_heads", LEFT_OUT, sources)
    bundle.take_all(_HOST)
    header = _HEADER.format(host=adapter.model_type, methods=", ".join(methods), version=VERSION, format=FORMAT)
    return header + bundle.text()


def _host(adapter: AttentionAdapter, methods: dict[str, tuple[type[Any], type[Any]]]) -> str:
    """The source of a host's derived classes, written out."""
    config, row = host_config_class(adapter), resolved(adapter)
    served = [name for names in served_classes(adapter).values() for name in names]
    natives = list(dict.fromkeys([*served, *(name for name, _ in adapter.parts)]))
    classes = {"AutoConfig": f"Heads{config.__name__}", **derived_classes(adapter)}
    rows = {name: tuple(Name(one.__name__) for one in pair) for name, pair in methods.items()}
    named = [*dict.fromkeys(named_in(row)), *(one for pair in methods.values() for one in pair)]
    parts = [
        _HOST_IMPORTS,
        *(f"from {one.__module__} import {one.__name__}\n" for one in named),
        f"from {adapter.configuration.__name__} import {config.__name__}\n",
        *(f"from {adapter.modeling.__name__} import {native}\n" for native in natives),
        _CONFIG.format(
            config=config.__name__,
            model_type=PREFIX + adapter.model_type,
            row=literal(row, 4, len("heads_row = ")),
            methods=literal(rows, 4, len("heads_methods = ")),
            classes=literal(classes, 4, len("heads_classes = ")),
        ),
        *(_MODEL.format(native=native, config=config.__name__) for native in natives),
        _CLOSING.format(config=config.__name__, prefix=PREFIX, model_type=adapter.model_type),
    ]
    return "".join(parts)


def _stored(spec: type[HeadsSpec]) -> tuple[str, ...]:
    """The fields of a spec that stand in `config.json`."""
    return tuple(item.name for item in fields(spec) if item.metadata.get("stored", True))


def _settings(spec: type[HeadsSpec], names: tuple[str, ...], attentions: Collection[type[Any]]) -> str:
    """A spec's class with nothing but these fields, and what its attention asks of it."""
    items = {item.name: item for item in fields(spec)}
    lines = [f'"""{inspect.getdoc(spec).splitlines()[0]}"""', ""]  # type: ignore[union-attr]
    for name in names:
        if name not in items:
            lines.append(f"{name}: ClassVar[str]")
            continue
        default = items[name].default
        lines.append(f"{name}: {items[name].type}" + ("" if default is MISSING else f" = {literal(default)}"))
    if spec is not HeadsSpec:
        lines.insert(2, f'method: ClassVar[str] = "{spec.method}"')
    for source in _behaviour(spec, attentions):
        lines += ["", *source.splitlines()]
    base = "" if spec is HeadsSpec else "(HeadsSpec)"
    body = textwrap.indent("\n".join(lines), "    ", lambda line: bool(line.strip()))
    imports = _SETTINGS if spec is not HeadsSpec else _SETTINGS.replace(_OWN_BASE, "")
    return f"{imports}\n\n@dataclass(frozen=True, kw_only=True)\nclass {spec.__name__}{base}:\n{body}\n"


def _behaviour(spec: type[HeadsSpec], attentions: Collection[type[Any]]) -> list[str]:
    """The sources of the methods and properties of a spec that attention asks for, and of those that these ask for."""
    kinds = [one for one in spec.__mro__ if issubclass(one, HeadsSpec) and (one is not HeadsSpec or spec is HeadsSpec)]
    defined: dict[str, Any] = {name: value for one in reversed(kinds) for name, value in vars(one).items()}
    running = {kind for one in attentions for kind in one.__mro__ if kind.__module__.startswith("hf_heads.")}
    asked = {name for kind in running for name in _asked(inspect.getsource(kind), ("spec", "self.spec"))}
    found: dict[str, str] = {}
    while names := sorted(asked & defined.keys() - found.keys()):
        for name in names:
            value: Any = defined[name].fget if isinstance(defined[name], property) else defined[name]
            found[name] = textwrap.dedent(inspect.getsource(value)) if inspect.isfunction(value) else ""
            asked |= _asked(found[name], ("self",))
    return [source for source in found.values() if source]


def _asked(source: str, owners: Collection[str]) -> set[str]:
    """The names of the attributes that a source takes from one of these."""
    tree = ast.parse(textwrap.dedent(source))
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in taken if ast.unparse(node.value) in owners}
