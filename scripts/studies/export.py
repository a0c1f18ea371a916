"""What ways out lose and cost: native in float64 pair by pair, the nearest of a collab, and ONNX beside torch.

Native: largest difference of the outputs of converted models (by the weights alone) and of the host's own architecture
that they are written out as, both in float64 but for softmax. Nearest, ONNX and int8: MiniLM; embeddings of the STS-B
dev sentences. Times are of one thread, torch in sdpa and onnxruntime in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from transformers import PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, HeadsError, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import main_output, mean_pool
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.io.data.calibration import CalibrationChoice, probes
from hf_heads.jobs.export.building import native_of
from hf_heads.jobs.export.graphs import example
from hf_heads.jobs.export.native import export_native
from hf_heads.jobs.export.onnx import export_onnx
from hf_heads.modeling.blocks import block_shape
from studies.shared.inputs import load
from studies.shared.running import add_folders, save, shown
from studies.shared.sentences import Sentences
from studies.shared.timing import add_seconds, medians

PARTS = ("native", "nearest", "onnx", "int8")
SHAPES = ((1, 32), (8, 128))
ONNX: dict[str, HeadsSpec] = {"collab 96": CollabSpec(rank=96), "pruned half": PrunedSpec(keep=0.5)}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "models")
    parser.add_argument("--hosts", nargs="*", default=["minilm", "vit", "marian"], help="of native, default all three")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="others stay; default all")
    add_seconds(parser, 4.0)


def pairs(model: PreTrainedModel) -> dict[str, HeadsSpec]:
    """Settings of every method that standard attention of the host's width can say, and some that it cannot."""
    shape = block_shape(find_blocks(model)[0])
    # A tensor of its own width would take minutes to decompose; scores of so small a rank do as well.
    return {
        "low-rank": LowRankSpec(rank=shape.heads * shape.head_dim // 2),
        "pruned": PrunedSpec(keep=0.5, score="weights"),
        "mhe": MheSpec(),
        "mhe add": MheSpec(variant="add"),
        "collab, rank of a head less one": CollabSpec(rank=shape.head_dim - 1),
        "mgk": MgkSpec(merge=2),
    }


def exact(host: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every method on a host."""
    source, model = load(host, options)
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in probes(source, model)[0].items()
    }
    rows = []
    for label, spec in pairs(model).items():
        converted = hf_heads.convert(model, spec, calibration="none")[0].double().eval()
        row: dict[str, Any] = {"host": host, "method": label}
        try:
            native = native_of(converted, torch.float64)
        except HeadsError:
            rows.append(shown({**row, "refused": True}))
            continue
        native.set_attn_implementation("eager")
        converted.set_attn_implementation("eager")
        with torch.no_grad():
            wanted, found = (main_output(one, inputs)[0] for one in (converted, native))
        sizes = [sum(one.numel() for one in made.parameters()) for made in (model, converted, native)]
        row |= {"difference": float((found - wanted).abs().max()), "largest": float(wanted.abs().max())}
        rows.append(shown({**row, "original": sizes[0], "converted": sizes[1], "parameters": sizes[2]}))
    return rows


def folder_of(study: Sentences, model: PreTrainedModel, place: Path) -> Any:
    """A converted model in a folder, with its tokenizer."""
    model.save_pretrained(place)
    copy_companions(study.source.folder, place)
    return resolve_source(str(place))


def nearest(study: Sentences, collab: PreTrainedModel, place: Path) -> dict[str, Any]:
    """What MiniLM's collab loses as plain BERT."""
    choice = CalibrationChoice(study.files.train, samples=512)
    report = export_native(folder_of(study, collab, place / "collab"), place / "native", nearest=choice)
    native = load_source(resolve_source(str(place / "native")))
    embeddings = [study.embed(one) for one in (collab, native)]
    cosines = (embeddings[0] * embeddings[1]).sum(1)
    scores = {name: study.spearman(one) for name, one in zip(("collab", "native"), embeddings, strict=True)}
    lost = list(report.lost.values())
    return shown(
        {
            "cosine": float(cosines.mean()),
            "lowest": float(cosines.min()),
            "sentences": len(cosines),
            "least_lost": min(lost),
            "most_lost": max(lost),
            "original": study.base,
            **scores,
        }
    )


def onnx(study: Sentences, label: str, model: PreTrainedModel, place: Path, seconds: float) -> list[dict[str, Any]]:
    """A row for every shape: size, difference and time beside torch's."""
    source = folder_of(study, model, place / f"{label}-converted")
    report = export_onnx(source, place / label)
    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = torch.get_num_threads()
    path = place / label / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(path, given, providers=["CPUExecutionProvider"])
    model.set_attn_implementation("sdpa")
    weights = sum(one.stat().st_size for one in source.folder.glob("*.safetensors"))
    rows = []
    for batch, length in SHAPES:
        inputs = dict(zip(report.inputs, example(model, report.inputs, batch, length), strict=True))
        arrays = {name: value.numpy() for name, value in inputs.items()}
        with torch.inference_mode():
            wanted = main_output(model, inputs)[0]
            (found,) = session.run(None, arrays)
            runs = {"torch": partial(main_output, model, inputs), "onnx": partial(session.run, None, arrays)}
            times = medians(runs, seconds, "cpu")
        where = inputs["attention_mask"].bool()
        row = {"method": label, "batch": batch, "length": length}
        row |= {"difference": float((torch.from_numpy(found) - wanted)[where].abs().max())}
        row |= {"bytes": report.bytes, "torch_bytes": weights, "ratio": times["torch"] / times["onnx"]}
        rows.append(shown(row))
    return rows


@torch.no_grad()
def int8(study: Sentences, label: str, model: PreTrainedModel, place: Path) -> dict[str, Any]:
    """What weights in 8 bits lose on real sentences: embeddings of onnxruntime beside torch's in float32."""
    report = export_onnx(folder_of(study, model, place / f"{label}-source"), place / f"{label}-int8", int8=True)
    assert report.int8 is not None
    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = torch.get_num_threads()
    path = place / f"{label}-int8" / "onnx" / "model_int8.onnx"
    session = onnxruntime.InferenceSession(path, given, providers=["CPUExecutionProvider"])
    wanted = study.embed(model)
    found = torch.empty_like(wanted)
    for batch in study.batches:
        arrays = {name: batch.get(name, torch.zeros_like(batch["input_ids"])).numpy() for name in report.inputs}
        (states,) = session.run(None, arrays)
        found[batch["index"]] = mean_pool(torch.from_numpy(states), batch["attention_mask"])
    found = torch.nn.functional.normalize(found, dim=-1)
    cosines = (found * wanted).sum(1)
    row = {"method": label, "bytes": report.bytes, "int8_bytes": report.int8["bytes"], "sentences": len(cosines)}
    row |= {"cosine": float(cosines.mean()), "lowest": float(cosines.min()), "original": study.base}
    return shown({**row, "float32": study.spearman(wanted), "int8": study.spearman(found)})


def run(options: argparse.Namespace) -> None:
    path = options.results / "export.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results: dict[str, Any] = {part: earlier[part] for part in PARTS if part in earlier and part not in options.parts}
    if "native" in options.parts:
        results["native"] = [row for host in options.hosts for row in exact(host, options)]
        save("export", results, options)
    if not {"nearest", "onnx", "int8"} & {*options.parts}:
        return
    study = Sentences(options)
    with tempfile.TemporaryDirectory() as name:
        for label, spec in ONNX.items():
            model, _ = hf_heads.convert(study.model, spec, calibration=study.calibration(), seed=options.seed)
            if isinstance(spec, CollabSpec) and "nearest" in options.parts:
                results["nearest"] = nearest(study, model, Path(name))
            if "onnx" in options.parts:
                results.setdefault("onnx", []).extend(onnx(study, label, model, Path(name), options.seconds))
            if "int8" in options.parts:
                results.setdefault("int8", []).append(int8(study, label, model, Path(name)))
            save("export", results, options)
