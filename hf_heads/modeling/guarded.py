"""What every derived config is while a model runs: its host's, with a section on the heads, safe in other hands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from hf_heads.attention.hosts.sites import AttentionAdapter
from hf_heads.core.errors import HeadsError
from hf_heads.modeling.internals import guarded, model_being_built, without_guard

if TYPE_CHECKING:
    from hf_heads.attention.spec import HeadsSpec

FORMAT = 1
GUARD = (
    "this checkpoint has re-parametrized attention heads and a native class would load it with random attention; "
    "`import hf_heads`, or give trust_remote_code=True, and load it with AutoModel or any AutoModelForX"
)

_building_ours: ContextVar[bool] = ContextVar("_building_ours", default=False)


@contextmanager
def building_ours() -> Iterator[None]:
    """While a class of ours builds itself from its host's parts, these may take its config."""
    token = _building_ours.set(True)
    try:
        yield
    finally:
        _building_ours.reset(token)


class GuardedConfig:
    """What a derived config has on top of its host's, wherever its class comes from.

    Attributes:
        heads: the section of `config.json` on the heads; None or an empty section is the host's own attention.
    """

    heads: dict[str, Any] | None
    model_type: str
    _name_or_path: str

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**without_guard(kwargs))  # type: ignore[misc]
        self.block_specs()

    @classmethod
    def heads_adapter(cls) -> AttentionAdapter:
        """The row of the architecture."""
        raise NotImplementedError

    def block_specs(self) -> dict[str, HeadsSpec]:
        """The settings of every converted block by name.

        Raises:
            HeadsError: the section is malformed or of a format that is not known here.
        """
        raise NotImplementedError

    def remote_classes(self) -> dict[str, str]:
        """The `auto_map` of `config.json`: which class of the code beside it serves which Auto class."""
        raise NotImplementedError

    @property
    def name_or_path(self) -> str:
        """Where the config came from.

        Raises:
            HeadsError: a host's own class, or one derived from it, reads this to build a model without our attention.
        """
        model = None if _building_ours.get() else model_being_built(sys._getframe(1))
        if model is not None and self.block_specs():
            host = self.heads_adapter().modeling.__name__
            if any(base.__module__ == host for base in type(model).__mro__):
                raise HeadsError(f"{type(model).__name__} cannot be built from a {type(self).__name__}: {GUARD}")
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._name_or_path = str(value)

    def to_dict(self) -> dict[str, Any]:
        """The config as written to `config.json`, with what makes other ways of loading it safe."""
        entries: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        if self.heads:
            return {**guarded(entries, GUARD), "auto_map": self.remote_classes()}
        return entries


def block_entries(heads: Any) -> dict[str, dict[str, Any]]:
    """The settings of every block as they stand in a config's section on the heads.

    Raises:
        HeadsError: the section is malformed or of a format that is not known here.
    """
    if not heads:
        return {}
    version = heads.get("format")
    if not isinstance(version, int) or version < 1:
        raise HeadsError(f"config.json: heads.format is {version!r}, expected a number from 1 to {FORMAT}")
    if version > FORMAT:
        raise HeadsError(
            f"config.json: heads.format {version} is newer than this hf-heads reads ({FORMAT}); upgrade hf-heads"
        )
    blocks = heads.get("blocks")
    if not isinstance(blocks, dict) or set(heads) - {"format", "blocks"}:
        raise HeadsError("config.json: heads must hold format and blocks, and nothing else")
    for name, entry in blocks.items():
        if not isinstance(entry, dict) or "method" not in entry:
            raise HeadsError(f"config.json: heads.blocks['{name}'] names no method")
    return blocks
