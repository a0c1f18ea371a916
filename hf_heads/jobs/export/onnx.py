"""A converted model as ONNX files, with its savings: what runs them needs neither torch nor transformers."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.exported_card import graph_card
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder, write_file
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.jobs.export.graphs import Graph
from hf_heads.jobs.export.writers import graphs_of
from hf_heads.modeling.blocks import block_specs
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import native_entries

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_FOLDER = "onnx"


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        inputs: their names, in the tokenizer's words, but for those of a cache; of an encoder-decoder, its encoder's.
        output: its name.
        files: their names; three of an encoder-decoder.
        bytes: of the files.
        max_difference: the largest from torch's outputs, of other batches and lengths than it was exported with.
        parameters: of the model.
        int8: of the files with weights in 8 bits, if they were asked for: their bytes, and the cosine of their outputs
            to torch's in float32, the lowest of several.
        cached_layers: of a decoder, how many layers' keys and values go in and come out.
    """

    inputs: tuple[str, ...]
    output: str
    files: tuple[str, ...]
    bytes: int
    max_difference: float
    parameters: int
    int8: dict[str, float] | None = None
    cached_layers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        return {**dataclasses.asdict(self), "inputs": list(self.inputs), "files": list(self.files)}


class Bias(nn.Module):
    """The output projection of a block without heads: its bias, without a product of matrices of no width."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach())

    def forward(self, context: Tensor) -> Tensor:
        """(batch, target, 0) to (batch, target, output_width)."""
        return self.bias.expand(context.shape[0], context.shape[1], -1)


def export_onnx(source: Source, output: Path, *, overwrite: bool = False, int8: bool = False) -> OnnxReport:
    """Write a converted model as ONNX, in a folder with its tokenizer, as sentence-transformers lays it out.

    An encoder of texts or images, or a language model, whose cache comes and goes as `past_key_values.N.key` and
    `present.N.key` with their values; it may be empty. An encoder-decoder becomes three files, see `graphs_of`.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.
        int8: also write files with the weights of products in 8 bits, which onnxruntime multiplies as such.

    Raises:
        HeadsError: the packages are not installed, the checkpoint is not converted or of another kind, or onnxruntime
            gives other outputs than torch.
    """
    place = check_output(output, overwrite)
    check_apart(output, source.folder, "source")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise HeadsError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    model = load_source(source)
    if not block_specs(model):
        raise HeadsError(f"'{source.given}' is not converted: optimum exports it as it is")
    parameters = sum(one.numel() for one in model.parameters())
    write_biases(model)
    graphs = graphs_of(model, source)
    with finished_folder(place) as folder:
        copy_companions(source.folder, folder)
        report = _write_all(graphs, folder / _FOLDER, parameters, int8)
        write_file(folder / "README.md", graph_card(source, report.to_dict(), "onnx"))
        save_host_config(model, folder)
    return report


def save_host_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config of a converted model as its host's own, which programs look at for what it reads and gives."""
    config: Any = AutoConfig.for_model(adapter_of(model.config).model_type, **native_entries(model.config))
    config.architectures = [native_model(type(model)).__name__]
    config.save_pretrained(folder)


def _write_all(graphs: dict[str, Graph], folder: Path, parameters: int, int8: bool) -> OnnxReport:
    """Write a file of each graph into a new folder.

    Raises:
        HeadsError: onnxruntime gives other outputs than torch.
    """
    folder.mkdir()
    difference, lower = 0.0, list[dict[str, float]]()
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        write_onnx(graph, path)
        difference = max(difference, compared(graph, path)[0])
        if not difference < 1e-3:
            raise HeadsError(f"onnxruntime's outputs differ from torch's by {difference:.3g}: nothing was written")
        if int8:
            lower.append(write_int8(graph, path))
    first, last = (list(graphs.values())[place] for place in (0, -1))
    return OnnxReport(
        tuple(name for name in first.inputs if "." not in name),
        last.outputs[0],
        tuple(f"{name}.onnx" for name in graphs),
        sum((folder / f"{name}.onnx").stat().st_size for name in graphs),
        difference,
        parameters,
        {"bytes": sum(one["bytes"] for one in lower), "cosine": min(one["cosine"] for one in lower)} if int8 else None,
        last.layers,
    )


def write_biases(model: PreTrainedModel) -> None:
    """Write blocks without heads as the bias that they are, in place; some runtimes take no matrix without width."""
    for block in find_blocks(model):
        if isinstance(block.module, HeadsAttention) and not block.module.shape.heads:
            model.set_submodule(block.output_path, Bias(block.output.bias))


def write_onnx(graph: Graph, path: Path) -> None:
    """Write a file for any number of examples, and texts of any length."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            graph.module,
            graph.example(*graph.exported),
            str(path),
            dynamo=True,
            dynamic_shapes=(graph.sizes,),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
        )


def write_int8(graph: Graph, path: Path) -> dict[str, float]:
    """Write a file with weights in 8 bits beside the other, by onnxruntime's quantizer; returns size and cosine."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # an extra of this package

    lower, logger = path.with_name(f"{path.stem}_int8.onnx"), logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it recommends, through the root logger, a preparation that changes nothing here
    try:
        quantize_dynamic(path, lower, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(before)
    return {"bytes": lower.stat().st_size, "cosine": compared(graph, lower)[1]}


def compared(graph: Graph, path: Path) -> tuple[float, float]:
    """The largest difference of onnxruntime's outputs from torch's, and their mean cosine, at two other sizes.

    Of a decoder the second has a cache. Padding does not count.
    """
    import onnxruntime  # an extra of this package

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}  # some hosts make no use of an input
    found, cosines = 0.0, list[Tensor]()
    for size in graph.tried:
        inputs = graph.example(*size)
        with torch.no_grad():
            wanted = graph.module(*inputs)[0]
        arrays = {name: one.numpy() for name, one in zip(graph.inputs, inputs, strict=True) if name in taken}
        pair = [torch.from_numpy(session.run([graph.outputs[0]], arrays)[0]), wanted]
        if (counted := graph.counted(inputs)) is not None and wanted.ndim == 3:
            pair = [one[counted] for one in pair]
        found = max(found, float((pair[0] - pair[1]).abs().max()))
        cosines.append(torch.cosine_similarity(pair[0], pair[1], dim=-1).flatten())
    return found, float(torch.cat(cosines).mean())
