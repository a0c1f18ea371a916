"""A converted model as an ONNX file, with its savings: what runs it needs neither torch nor transformers."""

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
from hf_heads.io.checkpoints.exported_card import onnx_card
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder, write_file
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.jobs.export.graphs import Graph, graph_of
from hf_heads.modeling.blocks import block_specs
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import native_entries

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_FILE, _INT8 = Path("onnx") / "model.onnx", Path("onnx") / "model_int8.onnx"


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        inputs: their names, in the tokenizer's words, but for those of a cache.
        output: its name.
        bytes: of the file.
        max_difference: the largest from torch's outputs, of other batches and lengths than it was exported with.
        parameters: of the model.
        int8: of the file with weights in 8 bits, if one was asked for: its bytes, and the cosine of its outputs to
            torch's in float32.
        cached_layers: of a decoder, how many layers' keys and values go in and come out.
    """

    inputs: tuple[str, ...]
    output: str
    bytes: int
    max_difference: float
    parameters: int
    int8: dict[str, float] | None = None
    cached_layers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        return {**dataclasses.asdict(self), "inputs": list(self.inputs)}


class Bias(nn.Module):
    """The output projection of a block without heads: its bias, without a product of matrices of no width."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach())

    def forward(self, context: Tensor) -> Tensor:
        """(batch, target, 0) to (batch, target, output_width)."""
        return self.bias.expand(context.shape[0], context.shape[1], -1)


def export_onnx(source: Source, output: Path, *, overwrite: bool = False, int8: bool = False) -> OnnxReport:
    """Write a converted model as an ONNX file, in a folder with its tokenizer, as sentence-transformers lays it out.

    An encoder of texts or images, or a language model, whose cache comes and goes as `past_key_values.N.key` and
    `present.N.key` with their values; it may be empty.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.
        int8: also write a file with the weights of products in 8 bits, which onnxruntime multiplies as such.

    Raises:
        HeadsError: the packages are not installed, the checkpoint is not converted or writes from what it reads, or
            onnxruntime gives other outputs than torch.
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
    graph = graph_of(model, source.folder, source.given)
    with finished_folder(place) as folder:
        copy_companions(source.folder, folder)
        (folder / _FILE).parent.mkdir()
        write_onnx(graph, folder / _FILE)
        difference = compared(graph, folder / _FILE)[0]
        if not difference < 1e-3:
            raise HeadsError(f"onnxruntime's outputs differ from torch's by {difference:.3g}: nothing was written")
        size = (folder / _FILE).stat().st_size
        lower = write_int8(graph, folder) if int8 else None
        inputs = tuple(name for name in graph.inputs if "." not in name)
        report = OnnxReport(inputs, graph.outputs[0], size, difference, parameters, lower, graph.layers)
        write_file(folder / "README.md", onnx_card(source, report.to_dict()))
        config: Any = AutoConfig.for_model(adapter_of(model.config).model_type, **native_entries(model.config))
        config.architectures = [native_model(type(model)).__name__]
        config.save_pretrained(folder)
    return report


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


def write_int8(graph: Graph, folder: Path) -> dict[str, float]:
    """Write the file with weights in 8 bits beside the other, by onnxruntime's quantizer; returns size and cosine."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # an extra of this package

    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it recommends, through the root logger, a preparation that changes nothing here
    try:
        quantize_dynamic(folder / _FILE, folder / _INT8, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(before)
    return {"bytes": (folder / _INT8).stat().st_size, "cosine": compared(graph, folder / _INT8)[1]}


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
