"""Which files belong to a checkpoint; all others in its folder are somebody's own, neither copied nor deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from hf_heads.vocabulary import REPORT

STUB = "heads_remote.py"  # what `trust_remote_code=True` looks for in a converted checkpoint

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
_OWN = ("config.json", "README.md", STUB, REPORT, ".gitattributes")
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


def files_of(folder: Path) -> list[PurePath]:
    """The paths in a folder of all that is not a folder itself, sorted; links are not followed."""
    found: list[PurePath] = []
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder) for name in (*names, *links)]
    return sorted(found)


def not_of_a_checkpoint(folder: Path) -> str | None:
    """The first file in a folder that neither hf-heads nor transformers writes; None of a checkpoint, or where none is.

    A folder without a config or a report is no checkpoint, whatever its files are called.
    """
    files = files_of(folder)
    if not files and not any(folder.iterdir()):
        return None
    strange = [path for path in files if not (is_companion(path) or is_weights(path) or str(path) in _OWN)]
    if not strange and any((folder / name).is_file() for name in ("config.json", REPORT)):
        return None
    return str((strange or files or sorted(folder.iterdir()))[0])
