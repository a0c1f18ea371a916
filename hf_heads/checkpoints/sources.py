"""Where a checkpoint comes from: a folder, the hub, an installed package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from hf_heads.errors import HeadsError


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
    if not any(source.folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in source.folder.glob(pattern))
        if pickles:
            raise HeadsError(
                f"'{given}' has its weights only as pickle ({pickles[0]}), which can run code when read; save it as "
                "safetensors first: AutoModel.from_pretrained(...).save_pretrained(FOLDER) where you trust it"
            )
        raise HeadsError(f"'{given}' has no *.safetensors file")
    return source


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
        if any(path.parent.glob("*.safetensors"))
    ]
    if len(found) != 1:
        raise HeadsError(f"the package '{name}' ships {len(found)} safetensors checkpoints, expected one")
    return found[0]


def _download(given: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download  # takes a while, and folders do without it
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
