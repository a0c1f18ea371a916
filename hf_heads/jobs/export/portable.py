"""The code of a converted checkpoint put beside it, where an earlier version wrote none."""

from __future__ import annotations

import json
from typing import Any

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.card import renew_use
from hf_heads.io.checkpoints.files import write_file
from hf_heads.io.checkpoints.json_files import read_json
from hf_heads.io.checkpoints.loading import read_config
from hf_heads.io.checkpoints.sources import Source
from hf_heads.modeling.configuration import HeadsConfig
from hf_heads.modeling.portable.writing import can_carry, write_code


def make_portable(source: Source) -> str:
    """Write the code of a converted checkpoint into its folder, and tell its config and its card.

    Weights and all other entries of the config stay as they are.

    Returns:
        The name of the file with the code.

    Raises:
        HeadsError: the checkpoint is not converted, no folder of the user's, or of another package's method.
    """
    config: Any = read_config(source)
    if not isinstance(config, HeadsConfig) or not config.heads:
        raise HeadsError(f"'{source.given}' is not converted: plain transformers loads it as it is")
    if source.revision is not None or source.given.startswith("package:"):
        raise HeadsError(f"'{source.given}' is no folder of yours: download it, and give the folder")
    methods = tuple(sorted({spec.method for spec in config.block_specs().values()}))
    adapter = config.heads_adapter()
    if not can_carry(adapter, methods):
        raise HeadsError(
            f"'{source.given}' is of another package ({', '.join([adapter.model_type, *methods])}), whose code is not "
            "ours to hand on: install that package where the checkpoint is to be loaded"
        )
    write_code(source.folder, adapter, methods)
    entries = read_json(source.folder / "config.json", "config")
    renewed = {**entries, **{name: value for name, value in config.to_dict().items() if name in _RENEWED}}
    write_file(source.folder / "config.json", json.dumps(renewed, indent=2, sort_keys=True) + "\n")
    renew_use(source)
    return f"{config.remote_classes()['AutoConfig'].partition('.')[0]}.py"


_RENEWED = ("auto_map", "fusion_config")  # what other programs than ours look at: where the classes are, and the guard
