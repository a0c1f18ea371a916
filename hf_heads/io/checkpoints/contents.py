"""Which files belong to a checkpoint; all others in its folder are somebody's own, neither copied nor deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from hf_heads.core.errors import HeadsError
from hf_heads.core.numbers import shown
from hf_heads.core.vocabulary import REPORT, shortened
from hf_heads.io.checkpoints.json_files import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# What `trust_remote_code=True` looks for in a converted checkpoint: its code, or what reaches an installed hf-heads.
_CODE = re.compile(r"modeling_heads_\w+\.py|heads_remote\.py")

# Files of tokenizers, processors, generation and sentence-transformers, and licences: they go along with a conversion.
_COMPANIONS = re.compile(
    r"""
    (generation|preprocessor|processor|image_processor|video_preprocessor|feature_extractor)_config\.json
    | tokenizer\.json | tokenizer_config\.json | special_tokens_map\.json | added_tokens\.json | normalizer\.json
    | vocab\.(json|txt|bpe) | (source|target)_vocab\.json | vocab-(src|tgt)\.json | merges\.txt | bpe\.codes | dict\.txt
    | [\w.-]+\.(model|spm) | chat_template\.(json|jinja)
    | (sentence_\w+|config_sentence_transformers)(_config)?\.json | modules\.json
    | (LICENSE|LICENCE|NOTICE|COPYING)(-\w+)?(\.(txt|md|rst|html))?
    """,
    re.VERBOSE,
)
_TEMPLATES = "additional_chat_templates"
_MODULE = re.compile(r"\d+_\w+")  # a folder of sentence-transformers, such as 1_Pooling
_IN_MODULE = re.compile(r"[\w.-]+\.(json|txt|safetensors)|[\w.-]+\.model")
_NAME = re.compile(r"[^/\\]{1,200}")
_OWN = ("config.json", "README.md", REPORT, ".gitattributes")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def is_companion(path: PurePath) -> bool:
    """Whether a file of a checkpoint, by its path in the folder, goes along when the weights are converted."""
    if len(path.parts) == 1:
        return _COMPANIONS.fullmatch(path.name) is not None and path.name != "config.json"
    if len(path.parts) != 2:
        return False
    if path.parts[0] == _TEMPLATES:
        return path.suffix == ".jinja"
    return bool(_MODULE.fullmatch(path.parts[0]) and _IN_MODULE.fullmatch(path.name))


def is_weights(path: PurePath) -> bool:
    """Whether a file holds weights or their index as transformers writes them."""
    return len(path.parts) == 1 and _WEIGHTS.fullmatch(path.name) is not None


def _is_own(path: PurePath) -> bool:
    return str(path) in _OWN or _CODE.fullmatch(str(path)) is not None


def files_of(folder: Path) -> list[PurePath]:
    """The paths in a folder of all that is not a folder itself, sorted; links are not followed."""
    found: list[PurePath] = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder) for name in (*names, *links)]
    return sorted(found)


def checkpoint_files(folder: Path) -> list[PurePath]:
    """The paths in a folder of what belongs to a checkpoint, sorted; nothing else in it is looked at."""
    subfolders = [
        one for one in folder.iterdir() if one.is_dir() and (one.name == _TEMPLATES or _MODULE.fullmatch(one.name))
    ]
    paths = [
        path.relative_to(folder) for place in (folder, *subfolders) for path in place.iterdir() if not path.is_dir()
    ]
    return sorted(path for path in paths if is_companion(path) or is_weights(path) or _is_own(path))


def check_files(folder: Path, given: str) -> None:
    """Refuse a checkpoint folder whose files are not files in it.

    Links are followed as far as the hub's cache needs it, whose snapshots hold links to its blobs.

    Args:
        folder: the checkpoint.
        given: what the user calls it.

    Raises:
        HeadsError: names a file that is a link out of the folder, or a pipe or device; or an entry of the index of
            weights that is not the name of a file in the folder.
    """
    root = folder.resolve()
    roots = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    for path in (*checkpoint_files(folder), *indexed_files(folder)):
        there = (folder / path).resolve()
        if not any(there.is_relative_to(one) for one in roots):
            raise HeadsError(f"'{path}' of '{given}' is a link out of the folder; put the file itself there")
        if there.exists() and not there.is_file():
            raise HeadsError(f"'{path}' of '{given}' is not a regular file")


def indexed_files(folder: Path) -> list[PurePath]:
    """The files that the index of weights names, sorted; none where there is no index.

    Raises:
        HeadsError: the index makes no sense, or names what is not a file of the folder.
    """
    path = folder / INDEX
    entries = read_json(path, "index").get("weight_map") if path.is_file() else {}
    if not isinstance(entries, dict) or (path.is_file() and not entries):
        raise HeadsError(f"the index '{path}' has no weight_map from tensors to files")
    for tensor, name in entries.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name) and name not in (".", "..") and name.isprintable()):
            raise HeadsError(
                f"the index '{path}' places '{shortened(tensor)}' in {shown(name)}, which is not a file of the folder"
            )
    return [PurePath(name) for name in sorted(set(entries.values()))]


def not_of_a_checkpoint(folder: Path) -> str | None:
    """The first file in a folder that neither hf-heads nor transformers writes; None of a checkpoint, or where none is.

    A folder without a config or a report is no checkpoint, whatever its files are called.
    """
    files = files_of(folder)
    if not files and not any(folder.iterdir()):
        return None
    strange = [path for path in files if not (is_companion(path) or is_weights(path) or _is_own(path))]
    if not strange and any((folder / name).is_file() for name in ("config.json", REPORT)):
        return None
    return str((strange or files or sorted(folder.iterdir()))[0])
