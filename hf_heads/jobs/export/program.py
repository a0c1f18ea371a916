"""A converted model as programs of torch.export, with its savings: torch alone loads them."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_heads.core.errors import HeadsError, reason
from hf_heads.io.checkpoints.exported_card import graph_card
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder, write_file
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.jobs.export.graphs import Graph
from hf_heads.jobs.export.onnx import save_host_config
from hf_heads.jobs.export.writers import graphs_of
from hf_heads.modeling.blocks import block_specs


@dataclass(frozen=True)
class ProgramReport:
    """What was written.

    Attributes:
        files: by name, what goes into each and what comes out, in this order.
        bytes: of the files.
        max_difference: the largest of any output from the model's, of other batches and lengths than it was exported
            with.
        parameters: of the model.
    """

    files: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    bytes: int
    max_difference: float
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        files = {name: {"inputs": list(one), "outputs": list(other)} for name, (one, other) in self.files.items()}
        return {**dataclasses.asdict(self), "files": files}


def export_program(source: Source, output: Path, *, overwrite: bool = False) -> ProgramReport:
    """Write a converted model as programs of torch.export, of any batch and length, in a folder with its tokenizer.

    They are the graphs that `export_onnx` writes.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.

    Raises:
        HeadsError: the checkpoint is not converted, `torch.export` cannot have it for all sizes, or what was written
            gives other outputs.
    """
    place = check_output(output, overwrite)
    check_apart(output, source.folder, "source")
    model = load_source(source)
    if not block_specs(model):
        raise HeadsError(f"'{source.given}' is not converted: torch.export takes it as it is")
    graphs = graphs_of(model, source)
    with finished_folder(place) as folder:
        copy_companions(source.folder, folder)
        differences = [write_program(graph, folder / f"{name}.pt2") for name, graph in graphs.items()]
        if not max(differences) < 1e-4:
            raise HeadsError(f"the programs' outputs differ by {max(differences):.3g}: nothing was written")
        report = ProgramReport(
            {f"{name}.pt2": (graph.inputs, graph.outputs) for name, graph in graphs.items()},
            sum((folder / f"{name}.pt2").stat().st_size for name in graphs),
            max(differences),
            sum(one.numel() for one in model.parameters()),
        )
        write_file(folder / "README.md", graph_card(source, report.to_dict(), "pt2"))
        save_host_config(model, folder)
    return report


def write_program(graph: Graph, path: Path) -> float:
    """Write a file, and read it again; returns how far its outputs are from the module's, at other sizes.

    Raises:
        HeadsError: sizes that should stay open would not.
    """
    open_sizes = tuple({place: torch.export.Dim.DYNAMIC for place in one} for one in graph.sizes)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, about itself
        try:
            made = torch.export.export(graph.module, graph.example(*graph.exported), dynamic_shapes=(open_sizes,))
        except torch._dynamo.exc.UserError as error:
            raise HeadsError(
                f"torch.export cannot have {path.stem} for all sizes: {reason(error)}; --onnx can"
            ) from None
        torch.export.save(made, path)
        read: Any = torch.export.load(path).module()
        found = 0.0
        for size in graph.tried:
            inputs = graph.example(*size)
            for here, there in zip(read(*inputs), graph.module(*inputs), strict=True):
                found = max(found, float((here - there).abs().max()) if here.numel() else 0.0)
    return found
