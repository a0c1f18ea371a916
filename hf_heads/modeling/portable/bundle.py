"""One module out of many: names, with all that they need of a package's modules, in an order in which it can run.

What is taken is whole statements of the sources, comments and all. The modules may import each other's names, not each
other as modules, and a name must mean the same in all of them.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hf_heads.core.errors import HeadsError


@dataclass(frozen=True)
class Module:
    """A module's source, by the names that its top level defines and imports.

    Attributes:
        name: the module's full name.
        source: its text.
    """

    name: str
    source: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the source."""
        return self.source.splitlines()

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """The statements that define a name at the top level."""
        found: dict[str, ast.stmt] = {}
        for node in ast.parse(self.source).body:
            found.update(dict.fromkeys(_defined(node), node))
        return found

    @cached_property
    def actions(self) -> list[ast.Expr]:
        """The statements at the top level that are calls."""
        tree = ast.parse(self.source)
        return [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """What names come from elsewhere: from which module, and as what; annotations' imports count as well."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in _top_level(ast.parse(self.source)):
            if isinstance(node, ast.Import):
                found.update({alias.asname or alias.name.partition(".")[0]: (alias.name, None) for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
                found.update({alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names})
        return found


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        yield from node.body if checking else [node]  # type: ignore[attr-defined]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@dataclass
class Bundle:
    """Gathers names and what they need.

    Attributes:
        package: the package whose modules are taken apart; all others are imported.
        without: names of methods that are left out of every class.
        sources: texts that stand in the place of modules.
    """

    package: str
    without: Collection[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._modules: dict[str, Module] = {}  # in an order in which each stands behind those that it needs
        self._reading: dict[str, Module] = {}
        self._taken: dict[str, set[str]] = {}
        self._whole: set[str] = set()
        self._homes: dict[str, str] = {}  # what every name means
        self._external: dict[str, tuple[str, str | None]] = {}

    def take(self, module: str, name: str) -> None:
        """Take a name of a module of the package, with all that it needs.

        Raises:
            HeadsError: the module does not define it, or it means another thing in another module.
        """
        source = self._module(module)
        if name in self._taken.setdefault(module, set()):
            return
        if name not in source.definitions:
            if name not in source.imports:
                raise HeadsError(f"{module} does not define {name}")
            self._import(name, *source.imports[name])
            return
        self._mean(name, module)
        self._taken[module].add(name)
        self._need(source, self._kept(source.definitions[name]))

    def _need(self, source: Module, node: ast.stmt) -> None:
        """Take what a statement names."""
        for name in sorted({one.id for one in ast.walk(node) if isinstance(one, ast.Name)}):
            if name in source.definitions:
                self.take(source.name, name)
            elif name in source.imports:
                self._import(name, *source.imports[name])

    def take_all(self, module: str) -> None:
        """Take all of a module of the package, what it does besides defining names included."""
        source = self._module(module)
        for name in source.definitions:
            self.take(module, name)
        for node in source.actions:
            self._need(source, node)
        self._whole.add(module)

    def text(self) -> str:
        """Imports and statements, module by module."""
        parts: list[str] = []
        for name, module in self._modules.items():
            statements = {id(node): node for one, node in module.definitions.items() if one in self._taken[name]}
            parts += ["\n".join(self._statement(module, node)) for node in statements.values()]
            if name in self._whole:
                parts.append("\n".join(line for node in module.actions for line in self._statement(module, node)))
        parts = [part for part in parts if part]
        gap = "\n" if parts and not parts[0].startswith(("def", "class", "@", "#")) else "\n\n"  # as sorters have it
        return f"{self._imports()}\n{gap}" + "\n\n\n".join(parts) + "\n"

    def _module(self, name: str) -> Module:
        if name not in self._reading:
            module = self._reading[name] = Module(name, self.sources.get(name) or _source(name))
            for where, what in module.imports.values():
                if where.partition(".")[0] == self.package and what is not None:
                    self._module(where)
            self._taken.setdefault(name, set())
            self._modules[name] = module
        return self._reading[name]

    def _mean(self, name: str, home: str) -> None:
        if self._homes.setdefault(name, home) != home:
            raise HeadsError(f"{name} is one thing in {home} and another in {self._homes[name]}: give it another name")

    def _import(self, name: str, module: str, what: str | None) -> None:
        if module.partition(".")[0] != self.package:
            self._mean(name, f"{module}:{what}")
            self._external[name] = (module, what)
        elif what != name:
            raise HeadsError(f"{module} is imported as {name}: import the names that are needed, as they are")
        else:
            self.take(module, name)

    def _kept(self, node: ast.stmt) -> ast.stmt:
        """A statement without the methods that are left out."""
        if not isinstance(node, ast.ClassDef):
            return node
        body = [part for part in node.body if not self._left_out(part)]
        return ast.ClassDef(node.name, node.bases, node.keywords, body, node.decorator_list)

    def _left_out(self, node: ast.stmt) -> bool:
        return isinstance(node, ast.FunctionDef) and node.name in self.without

    def _statement(self, module: Module, node: ast.stmt) -> list[str]:
        """The lines of a statement, with the comment above it and without what is left out."""
        gone: set[int] = set()
        for part in node.body if isinstance(node, ast.ClassDef) else []:
            if self._left_out(part):
                first = _first_line(module, part)
                while not module.lines[first - 2].strip():
                    first -= 1
                gone.update(range(first, part.end_lineno + 1))  # type: ignore[operator]
        assert node.end_lineno is not None
        kept = [number for number in range(_first_line(module, node), node.end_lineno + 1) if number not in gone]
        return [module.lines[number - 1] for number in kept]

    def _imports(self) -> str:
        plain: dict[bool, list[str]] = {True: [], False: []}
        origins: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
        for name, (module, what) in sorted(self._external.items()):
            if what is None:
                alias = "" if name == module.partition(".")[0] else f" as {name}"
                plain[_standard(module)].append(f"import {module}{alias}")
            else:
                named = what if what == name else f"{what} as {name}"
                origins[_standard(module)].setdefault(module, []).append(named)
        groups = ["from __future__ import annotations"]
        for kind in (True, False):
            lines = [line for module, names in sorted(origins[kind].items()) for line in _import_lines(module, names)]
            groups.append("\n".join([*plain[kind], *lines]))
        return "\n\n".join(groups)


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec is not None and hasattr(spec.loader, "get_source") else None  # type: ignore[union-attr]
    if source is None:
        raise HeadsError(f"the source of {name} is not there, and code is made of sources: install hf-heads anew")
    return source


def _first_line(module: Module, node: ast.stmt) -> int:
    """The line on which a statement starts, its decorators and the comments right above it included."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    while first > 1 and module.lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return first


def _standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _by_kind(name: str) -> tuple[int, str]:
    """Constants, classes and the rest, as import sorters have it."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name.lower()


def _import_lines(module: str, names: list[str]) -> list[str]:
    """The imports from a module, those under another name each on a line of its own."""
    simple = sorted((name for name in names if " as " not in name), key=_by_kind)
    lines = [f"from {module} import {name}" for name in sorted(names) if " as " in name]
    if not simple:
        return lines
    line = f"from {module} import {', '.join(simple)}"
    if len(line) > 120:
        line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in simple) + ")"
    return [line, *lines]
