"""From a checkpoint to a converted one of its own architecture, in one step: no code of ours is needed to load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import Block, find_blocks
from hf_heads.attention.module import HeadsAttention
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import Progress
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.exported_card import MadeBy
from hf_heads.io.checkpoints.files import check_apart, check_output
from hf_heads.io.checkpoints.hidden import beside
from hf_heads.io.checkpoints.loading import find_device, load_empty
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.command import convert_command
from hf_heads.jobs.conversion.installing import block_called
from hf_heads.jobs.conversion.planning import choose_blocks
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.export.building import check_sizes, standard_of
from hf_heads.jobs.export.native import NativeReport, export_native
from hf_heads.jobs.export.standard import Standard
from hf_heads.jobs.team import launched
from hf_heads.modeling.blocks import block_shape, share_weights
from hf_heads.modeling.classes import adopt
from hf_heads.modeling.grafting import replace_block


def convert_native(
    request: ConversionRequest, output: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> tuple[Report, NativeReport]:
    """Convert a checkpoint, and write what comes of it as one of the source's own architecture.

    The converted checkpoint is in a hidden folder beside the output until that is written. Both are in memory then.

    Args:
        request: what to convert, and how.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.
        progress: called with (what, done, total).

    Returns:
        What the conversion did, and what became of it.

    Raises:
        HeadsError: a block would be no attention of the host, before anything is converted where sizes tell; there are
            several processes; see also `convert_checkpoint` and `export_native`.
    """
    place = check_output(output, overwrite)
    source = request.find_source()
    check_apart(output, source.folder, "source")
    if launched(find_device(request.device) == "cpu").size > 1:
        raise HeadsError("--native takes one process: convert with several, and then `hf-heads export --native`")
    check_native(load_empty(source), request.spec, request.blocks)
    command = convert_command(request, source, public=True)
    place.path.parent.mkdir(parents=True, exist_ok=True)
    with beside(place.path, lambda hidden: hidden.mkdir(mode=0o700)) as hidden:
        report = convert_checkpoint(replace(request, source=source), hidden / "converted", progress=progress)
        converted = resolve_source(str(hidden / "converted"))
        made = export_native(
            replace(converted, given=str(output), base_model=source.base_model),
            output,
            overwrite=overwrite,
            device=request.device,
            shard_bytes=request.shard_bytes,
            made_by=MadeBy(source.public, command and f"{command} --native"),
            progress=progress,
        )
    return report, made


def check_native(model: PreTrainedModel, spec: HeadsSpec | dict[str, HeadsSpec], blocks: str | None = None) -> None:
    """Refuse settings with which a block would be no attention of the host, as far as they are known beforehand.

    Each kind of block is made once, with random weights: what is exact for these is so for all.

    Args:
        model: without weights, see `load_empty`.
        spec, blocks: as for a conversion.

    Raises:
        HeadsError: names the block.
    """
    chosen = choose_blocks(model, spec, blocks)
    rehearsal = share_weights(model)
    adopt(rehearsal)
    known: dict[object, Standard] = {}
    parts = {}
    for block in find_blocks(rehearsal):
        settings = chosen[block.name][1].resolve(block_shape(block), block.name) if block.name in chosen else None
        if block.name in chosen and settings is None:
            return  # ranks or heads that data will tell: what is written is judged by itself
        kind = (settings, block_shape(block), block.kind)
        if kind not in known:
            known[kind] = _rehearsed(rehearsal, block, settings)
        parts[block.name] = replace(known[kind], name=block.name)
    check_sizes(rehearsal, parts)


def _rehearsed(model: PreTrainedModel, block: Block, settings: HeadsSpec | None) -> Standard:
    """A block of random weights as standard attention.

    Raises:
        HeadsError: its method is none, whatever the weights.
    """
    if settings is not None:
        replace_block(model, block, settings)
        block = block_called(model, block.name)
    module, output = block.module.to_empty(device="cpu"), block.output.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*module.parameters(), *output.parameters()]:
            parameter.normal_(generator=generator)
    made = standard_of(replace(block, module=module, output=output))
    if isinstance(module, HeadsAttention):
        module.to("meta")
    output.to("meta")
    return made
