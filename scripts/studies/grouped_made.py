"""A language model calibrated without data, and its native output where hf-heads is not: SmolLM2-135M, see `grouped`.

Three key-value heads to one by the complex merge, on random tokens and on texts that the model itself writes, each as
many tokens as the text of `grouped`, and judged on the same held-out text. What the second gives is written by
`export --native`, and loaded by a process in which hf-heads cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_heads
from hf_heads import MheSpec
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.jobs.export.native import export_native
from studies.grouped import Measure, batches, original, texts
from studies.shared.inputs import TEXT
from studies.shared.running import add_folders, save, shown

PROMPT = "The capital of France is"
_ALONE = """
import sys
class Forbidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "hf_heads":
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden)
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, rows, found, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    torch.save(model(input_ids=torch.load(rows)).logits, found)
given = tokenizer(prompt, return_tensors="pt")
ids = model.generate(**given, max_new_tokens=16, do_sample=False)[0]
size = sum(one.numel() for one in model.parameters())
print(json.dumps({"class": type(model).__name__, "text": tokenizer.decode(ids), "parameters": size}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--length", type=int, default=96, help="tokens of a text (default 96)")
    parser.add_argument("--samples", type=int, default=24, help="texts to calibrate on (default 24)")
    parser.add_argument("--held-out", type=int, default=16, help="texts to measure on (default 16)")


def random_tokens(tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """Ordinary tokens, each as likely as another, (count, length)."""
    ordinary = torch.tensor(sorted({*range(len(tokenizer))} - {*tokenizer.all_special_ids}))
    return ordinary[torch.randint(len(ordinary), (count, length), generator=torch.Generator().manual_seed(seed))]


@torch.no_grad()
def written(model: PreTrainedModel, tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """What the model writes, drawn from its own distributions, from one random token each, (count, length)."""
    torch.manual_seed(seed)
    first = random_tokens(tokenizer, count, 1, seed)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    return model.generate(  # type: ignore[operator]
        input_ids=first, attention_mask=torch.ones_like(first), min_length=length, max_length=length, **settings
    )


def natively(model: PreTrainedModel, rows: Tensor, folder: Path, source: Path) -> dict[str, Any]:
    """A converted model as its host's own: the difference of logits after loading, and what it writes."""
    model.save_pretrained(folder / "converted")
    copy_companions(source, folder / "converted")
    export_native(resolve_source(str(folder / "converted")), folder / "native", overwrite=True)
    torch.save(rows, folder / "rows.pt")
    words = [folder / "native", folder / "rows.pt", folder / "logits.pt", PROMPT]
    said = subprocess.run([sys.executable, "-c", _ALONE, *map(str, words)], check=True, capture_output=True, text=True)
    with torch.no_grad():
        wanted = model.eval()(input_ids=rows).logits
    found = torch.load(folder / "logits.pt")
    sizes = {"difference": float((found - wanted).abs().max()), "largest": float(wanted.abs().max())}
    agreement = float((found.argmax(-1) == wanted.argmax(-1)).double().mean())
    config = json.loads((folder / "native" / "config.json").read_text(encoding="utf-8"))
    heads = {name: config[name] for name in ("model_type", "num_attention_heads", "num_key_value_heads")}
    return {**sizes, "agreement": agreement, **heads, **json.loads(said.stdout.splitlines()[-1])}


def run(options: argparse.Namespace) -> None:
    model, tokenizer = original(options.work)
    size = options.samples, options.length, options.seed
    held_out = texts(options.data / TEXT, tokenizer, options.length)[: options.held_out]
    measure = Measure(model, held_out)
    made = {
        "random tokens": random_tokens(tokenizer, *size),
        "what the model writes": written(model, tokenizer, *size),
    }
    results: dict[str, Any] = {"length": options.length, "samples": options.samples, "held_out": options.held_out}
    results |= {"written": tokenizer.decode(made["what the model writes"][0]), "rows": []}
    for label, rows in made.items():
        converted, _ = hf_heads.convert(model, MheSpec(groups=1), calibration=batches(rows))
        results["rows"].append(shown({"label": label, **measure.of(converted)}))
    results["native"] = shown(natively(converted, held_out[:2], options.work, options.work / "smollm2-135m"))
    save("grouped_made", results, options)
