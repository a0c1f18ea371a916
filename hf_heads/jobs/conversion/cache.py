"""What a conversion keeps in a folder, so that it goes on after a kill, and another one need not run the model.

All is found by a hash of what it was made from, so that nothing old is ever taken for something else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import VERSION
from hf_heads.io.checkpoints.files import check_output, finished_folder, write_file
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.shelf import Shelf
from hf_heads.io.checkpoints.weights import digest
from hf_heads.jobs.conversion.installing import block_called
from hf_heads.jobs.conversion.report import BlockReport
from hf_heads.jobs.conversion.stepping import PLAIN, Running, Stepper, Stop
from hf_heads.jobs.team import Team
from hf_heads.methods.registry import get_method
from hf_heads.modeling.configuration import native_entries
from hf_heads.modeling.grafting import replace_block

_LIST = "files.json"  # of a folder of inputs: what it holds, and the hashes


def check_cache(folder: str | Path | None) -> Path | None:
    """A folder that can be written into, made where it is missing.

    Raises:
        HeadsError: it is something else.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise HeadsError(f"'{folder}' is not a folder that can be made; choose another --cache") from None
    if not os.access(path, os.W_OK):
        raise HeadsError(f"cannot write into '{folder}'; choose another --cache")
    return path


def fingerprint(*parts: Any) -> str:
    """A hash of nested mappings, sequences, tensors and plain values."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            found.update(digest(part).encode())
        elif isinstance(part, Mapping):
            for name in sorted(part, key=str):
                add(name)
                add(part[name])
        elif isinstance(part, list | tuple):
            found.update(f"{len(part)} of".encode())
            for one in part:
                add(one)
        else:
            found.update(f"{part!r}\0".encode())

    add([VERSION, torch.__version__, *parts])
    return found.hexdigest()[:24]


def model_fingerprint(model: PreTrainedModel, shelf: Shelf | None = None) -> str:
    """A hash of a model's class, config and weights."""
    state = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state.update(f"{name} {digest(tensor)}".encode())
        if shelf is not None:
            shelf.touched([tensor])
    entries = {name: value for name, value in native_entries(model.config).items() if name != "_name_or_path"}
    heads = getattr(model.config, "heads", None)
    return fingerprint(type(model).__name__, entries, heads, state.hexdigest())


def asked_of(spec: HeadsSpec) -> list[Any]:
    """Settings as a fingerprint takes them, with what a file of scores says."""
    scores = getattr(spec, "scores", None)
    return [repr(spec), Path(scores).read_bytes() if scores and Path(scores).is_file() else None]


class FinishedBlocks:
    """Blocks that a conversion has done, in a folder of its own; a file that is not whole is not there.

    Args:
        cache: where that folder is; None keeps nothing.
        asked: all that the blocks depend on.
    """

    def __init__(self, cache: Path | None, *asked: Any) -> None:
        self.folder = None if cache is None else cache / f"blocks-{fingerprint(*asked)}"

    def plan(self, team: Team, make: Callable[[], dict[str, HeadsSpec]]) -> dict[str, HeadsSpec]:
        """The resolved settings of all blocks, which all processes of a team make together where they were not kept."""
        kept = team.agree(self._entries("plan") if team.main else None)
        try:
            specs = {name: _spec(values) for name, values in (kept or {}).items()}
        except (HeadsError, KeyError, TypeError, AttributeError):  # damaged, so not there
            specs = {}
        specs = specs or make()
        content = json.dumps({name: _values(spec) for name, spec in specs.items()})
        if team.main and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / "plan.json", content)
        agreed = team.agree(content)  # on other processors the last digits may differ
        return specs if team.main else {name: _spec(values) for name, values in json.loads(agreed).items()}

    def keep(self, report: BlockReport, block: Block) -> None:
        """Keep a block as it is now, and what the report says of it."""
        if self.folder is None:
            return
        content = save({name: one.detach().cpu().contiguous() for name, one in _state(block).items()})
        entries = {item.name: getattr(report, item.name) for item in fields(report)}
        entries |= {"spec": _values(report.spec), "sha256": hashlib.sha256(content).hexdigest()}
        write_file(self.folder / f"{report.name}.safetensors", content)
        write_file(self.folder / f"{report.name}.json", json.dumps(entries))  # last: it says that the block is done

    def restore(self, model: PreTrainedModel, name: str, team: Team | None = None) -> BlockReport | None:
        """Put a block into a model as it was kept, for all processes of a team by the first; None where it was not."""
        team = team or Team()
        kept = team.agree(self._read(name) if team.main else None)
        if kept is None:
            return None
        report, tensors = kept
        before = block_called(model, name)
        device = before.output.weight.device
        replace_block(model, before, report.spec)
        block = block_called(model, name)
        for part, module in _parts(block).items():
            own = {key: tensors[f"{part}.{key}"].to(device) for key in module.state_dict()}
            module.load_state_dict(own, assign=True)
        return cast(BlockReport, report)

    def _read(self, name: str) -> tuple[BlockReport, dict[str, Tensor]] | None:
        """A block as it was kept; None where it was not, or is damaged."""
        entries = self._entries(name)
        if entries is None or self.folder is None:
            return None
        try:
            content = (self.folder / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != entries.pop("sha256", None):
                return None
            tensors = load(content)
            spec = _spec(entries.pop("spec"))
            return BlockReport(spec=spec, **entries), tensors
        except (OSError, SafetensorError, HeadsError, KeyError, TypeError):
            return None

    def _entries(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file; None where there is none, or none that can be read."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")) if self.folder else None
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _values(spec: HeadsSpec) -> dict[str, Any]:
    """All that resolved settings hold, which is more than a config says."""
    return {"method": spec.method, **{item.name: getattr(spec, item.name) for item in fields(spec)}}


def _spec(values: dict[str, Any]) -> HeadsSpec:
    """Settings from what `_values` made of them, by way of JSON."""
    rest: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return get_method(rest.pop("method")).spec.resolved()(**rest)


def _parts(block: Block) -> dict[str, nn.Module]:
    """What a conversion changes of a block: its module, and the output projection where that is outside."""
    return {"module": block.module} if block.site.output_inside else {"module": block.module, "output": block.output}


def _state(block: Block) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": one for part, module in _parts(block).items() for name, one in module.state_dict().items()
    }


class Recorded:
    """What a model's blocks are called with, in folders; gives them as a `Stepper` does, and runs nothing.

    Args:
        model: whose blocks they are.
        batches: keyword arguments of its forward.
        more: other batches, which are asked for apart.
        folders: where they are, of either kind: those of each process of a team.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        more: Sequence[Batch],
        folders: tuple[Sequence[Path], Sequence[Path]],
    ) -> None:
        self.model, self.batches, self.more, self.folders = model, batches, more, folders
        self._seen: set[Path] = set()
        self._listed: dict[Path, dict[str, str]] = {}

    def at(self, name: str, more: bool = False) -> Iterator[Stop]:
        """Every batch, or every other batch, that reaches a block."""
        folders = self.folders[more]  # of processes that had a share: the first ones
        for index, batch in enumerate(self.more if more else self.batches):
            folder, file = folders[index % len(folders)], _file(name, index // len(folders))
            if (wanted := self._files(folder).get(file)) is None:
                continue  # the batch never reaches the block
            path = folder / file
            if path not in self._seen:
                if not path.is_file() or _hash_of(path) != wanted:
                    raise HeadsError(f"'{path}' is damaged or gone: remove '{folder}' and start again")
                self._seen.add(path)
            arguments = torch.load(path, map_location=self.model.device, weights_only=True)
            yield Stop(name, batch, arguments, place=index)

    def _files(self, folder: Path) -> dict[str, str]:
        """The files of a folder, each with its hash."""
        if folder not in self._listed:
            found: dict[str, str] = read_json(folder / _LIST, "list of the cache's files")
            self._listed[folder] = found
        return self._listed[folder]


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    more: Sequence[Batch],
    names: Sequence[str],
    cache: Path,
    key: str,
    team: Team,
    how: Running = PLAIN,
) -> Recorded:
    """What a model's blocks are called with, from folders of a cache; a forward pass fills those that are missing.

    Each process of a team runs its share of the batches.

    Args:
        model: to run.
        batches: keyword arguments of its forward.
        more: other batches, which are asked for apart.
        names: of the blocks.
        cache: where the folders are to be.
        key: the model's fingerprint.
        team: the processes at work.
        how: batches run.

    Raises:
        HeadsError: a block is called with what cannot be kept, or another process fills a folder elsewhere.
    """
    found: list[list[Path]] = []
    for kind in (batches, more):
        shares = [[kind[index] for index in Team(rank, team.size).share(len(kind))] for rank in range(team.size)]
        folders = [cache / f"inputs-{fingerprint(key, share, [*names], how.compute)}" for share in shares if share]
        if shares[team.rank] and not folders[team.rank].is_dir():
            _record(model, shares[team.rank], names, folders[team.rank], how)
        found.append(folders)
    team.wait()
    if lacking := [folder for folders in found for folder in folders if not folder.is_dir()]:
        raise HeadsError(f"'{lacking[0]}' of another process is not there: choose a --cache that all processes share")
    return Recorded(model, batches, more, (found[0], found[1]))


def _record(model: PreTrainedModel, batches: Sequence[Batch], names: Sequence[str], folder: Path, how: Running) -> None:
    places = {id(batch): index for index, batch in enumerate(batches)}
    new_folder = finished_folder(check_output(folder, False))
    with new_folder as new, Stepper(model, batches, names, how=how) as stepper:
        for name in names:
            for stop in stepper.at(name):
                torch.save(_plain(stop), new / _file(name, places[id(stop.batch)]))
        files = {path.name: _hash_of(path) for path in new.iterdir()}
        (new / _LIST).write_text(json.dumps(files), encoding="utf-8")


def _file(name: str, index: int) -> str:
    return f"{name}-{index}.pt"


def _plain(stop: Stop) -> dict[str, Any]:
    """The arguments of a block that can be kept.

    Raises:
        HeadsError: one is neither a tensor nor a plain value.
    """
    for name, value in stop.arguments.items():
        values = value if isinstance(value, tuple | list) else [value]
        if not all(one is None or isinstance(one, Tensor | bool | int | float | str) for one in values):
            raise HeadsError(f"{stop.name} is called with a {type(value).__name__} as {name}: leave out --cache")
    return {name: _own(value) for name, value in stop.arguments.items()}


def _own(value: Any) -> Any:
    """Tensors without the rest of a storage that they share."""
    return value.clone() if isinstance(value, Tensor) else value
