"""A converted encoder as an ONNX file, with its savings: what runs it needs neither torch nor transformers."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.batches import main_output
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.exported_card import onnx_card
from hf_heads.io.checkpoints.files import check_apart, check_output, finished_folder, write_file
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.modeling.blocks import block_specs
from hf_heads.modeling.classes import native_model
from hf_heads.modeling.configuration import native_entries

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_FILE, _INT8 = Path("onnx") / "model.onnx", Path("onnx") / "model_int8.onnx"


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        inputs: their names, in the tokenizer's words.
        output: its name.
        bytes: of the file.
        max_difference: the largest from torch's outputs, of other batches and lengths than it was exported with.
        parameters: of the model.
        int8: of the file with weights in 8 bits, if one was asked for: its bytes, and the cosine of its outputs to
            torch's in float32.
    """

    inputs: tuple[str, ...]
    output: str
    bytes: int
    max_difference: float
    parameters: int
    int8: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the model card."""
        return {**dataclasses.asdict(self), "inputs": list(self.inputs)}


class MainOutput(nn.Module):
    """A model of transformers whose inputs come by position and whose main output is all that it gives."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits, or the last hidden state of a model without a head."""
        return main_output(self.model, dict(zip(self.names, inputs, strict=True)))[0]


class Bias(nn.Module):
    """The output projection of a block without heads: its bias, without a product of matrices of no width."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach())

    def forward(self, context: Tensor) -> Tensor:
        """(batch, target, 0) to (batch, target, output_width)."""
        return self.bias.expand(context.shape[0], context.shape[1], -1)


def export_onnx(source: Source, output: Path, *, overwrite: bool = False, int8: bool = False) -> OnnxReport:
    """Write a converted encoder as an ONNX file, in a folder with its tokenizer, as sentence-transformers lays it out.

    Args:
        source: the converted checkpoint.
        output: the folder to make; it appears when it is complete.
        overwrite: replace `output` if it exists.
        int8: also write a file with the weights of products in 8 bits, which onnxruntime multiplies as such.

    Raises:
        HeadsError: the packages are not installed, the checkpoint is not converted or no encoder, or onnxruntime gives
            other outputs than torch.
    """
    place = check_output(output, overwrite)
    check_apart(output, source.folder, "source")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise HeadsError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    model = load_source(source)
    if not block_specs(model):
        raise HeadsError(f"'{source.given}' is not converted: optimum exports it as it is")
    check_encoder(model, source.given)
    names = input_names(model, source.folder)
    parameters = sum(one.numel() for one in model.parameters())
    write_biases(model)
    with finished_folder(place) as folder:
        copy_companions(source.folder, folder)
        (folder / _FILE).parent.mkdir()
        named = write_onnx(model, names, folder / _FILE)
        difference = compared(model, names, folder / _FILE)[0]
        if not difference < 1e-3:
            raise HeadsError(f"onnxruntime's outputs differ from torch's by {difference:.3g}: nothing was written")
        size = (folder / _FILE).stat().st_size
        lower = write_int8(model, names, folder) if int8 else None
        report = OnnxReport(names, named, size, difference, parameters, lower)
        write_file(folder / "README.md", onnx_card(source, report.to_dict()))
        config: Any = AutoConfig.for_model(adapter_of(model.config).model_type, **native_entries(model.config))
        config.architectures = [native_model(type(model)).__name__]
        config.save_pretrained(folder)
    return report


def check_encoder(model: PreTrainedModel, given: str) -> None:
    """Refuse what is no encoder of texts or images.

    Raises:
        HeadsError: names the block that is none.
    """
    modality = adapter_of(model.config).modality
    other = next((block for block in find_blocks(model) if block.kind != "self"), None)
    if other is not None or modality not in ("text", "image"):
        what = f"{other.name} of '{given}' is {other.kind} attention" if other else f"'{given}' reads {modality}"
        raise HeadsError(f"{what}, and --onnx takes encoders of texts or images: --portable takes every model")


def input_names(model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """What the tokenizer gives and the model takes, in the model's order; the image of an image model."""
    if adapter_of(model.config).modality == "image":
        return ("pixel_values",)
    try:
        given = AutoTokenizer.from_pretrained(folder).model_input_names
    except (OSError, ValueError):  # a checkpoint without a tokenizer
        given = ["input_ids", "attention_mask"]
    return tuple(name for name in inspect.signature(model.forward).parameters if name in given)


def write_biases(model: PreTrainedModel) -> None:
    """Write blocks without heads as the bias that they are, in place; some runtimes take no matrix without width."""
    for block in find_blocks(model):
        if isinstance(block.module, HeadsAttention) and not block.module.shape.heads:
            model.set_submodule(block.output_path, Bias(block.output.bias))


def example(model: PreTrainedModel, names: Sequence[str], batch: int, length: int) -> tuple[Tensor, ...]:
    """Inputs of a size; the last text of several is shorter than the others. Images have the model's size."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(length)
    if "pixel_values" in names:
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        return (torch.randn(batch, config.num_channels, *size, generator=generator),)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[batch - 1, max(length - 2, 1) :] = 0
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    found = {"input_ids": ids, "attention_mask": mask}
    return tuple(found.get(name, torch.zeros_like(ids)) for name in names)


def write_onnx(model: PreTrainedModel, names: Sequence[str], path: Path) -> str:
    """Write a model for any number of examples, and texts of any length; returns the name of its output."""
    inputs = example(model, names, 3, 9)
    logits = main_output(model, dict(zip(names, inputs, strict=True)))[1]
    named = "logits" if logits else "last_hidden_state"
    sizes = {0: "batch"} if "pixel_values" in names else {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            MainOutput(model, names).eval(),
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=(tuple(sizes for _ in names),),
            input_names=list(names),
            output_names=[named],
            external_data=False,
            verbose=False,
        )
    return named


def write_int8(model: PreTrainedModel, names: Sequence[str], folder: Path) -> dict[str, float]:
    """Write the file with weights in 8 bits beside the other, by onnxruntime's quantizer; returns size and cosine."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # an extra of this package

    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it recommends, through the root logger, a preparation that changes nothing here
    try:
        quantize_dynamic(folder / _FILE, folder / _INT8, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(before)
    return {"bytes": (folder / _INT8).stat().st_size, "cosine": compared(model, names, folder / _INT8)[1]}


def compared(model: PreTrainedModel, names: Sequence[str], path: Path) -> tuple[float, float]:
    """The largest difference of onnxruntime's outputs from torch's, and their mean cosine, at two other sizes.

    Padding does not count.
    """
    import onnxruntime  # an extra of this package

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    longest = int(getattr(model.config, "max_position_embeddings", 128))
    found, cosines = 0.0, list[Tensor]()
    for batch, length in ((1, min(33, longest)), (5, min(128, longest))):
        inputs = dict(zip(names, example(model, names, batch, length), strict=True))
        with torch.no_grad():
            wanted = main_output(model, inputs)[0]
        (made,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        pair = [torch.from_numpy(made), wanted]
        if "attention_mask" in inputs and wanted.ndim == 3:
            pair = [one[inputs["attention_mask"].bool()] for one in pair]
        found = max(found, float((pair[0] - pair[1]).abs().max()))
        cosines.append(torch.cosine_similarity(pair[0], pair[1], dim=-1).flatten())
    return found, float(torch.cat(cosines).mean())
