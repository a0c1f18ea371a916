"""MiniLM converted on texts of many lengths: cosine to the original by length, and on pairs, for every method.

Texts and their lengths are packed as the command line does it. WikiText is cut in two by lines: its first half is
calibrated on together with STS-B train, passages of its second half are measured on. Without labels. One method is
healed as well, on the same texts in mixed lengths. A row that is in --work already is not measured again, so that a
study can be made in pieces. The row of more passages is `--kinds enough --enough "low-rank 96" --passages 6`.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core.batches import Batch, output_mask, token_rows
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.calibration import load_data
from hf_heads.io.data.encoding import encode_text
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.distillation.checkpoint import distill_checkpoint
from hf_heads.jobs.distillation.settings import PRECISIONS, DistillSettings
from hf_heads.jobs.evaluation.drift import measure_drift
from studies.shared.inputs import TEXT, files, load, read_jsonl
from studies.shared.running import Timer, add_folders, save, shown

LENGTHS = {16: 96, 64: 48, 128: 32, 256: 16, 512: 12}  # and how many passages of each
METHODS: dict[str, HeadsSpec] = {
    "collab 96": CollabSpec(rank=96),
    "low-rank 96": LowRankSpec(rank=96),
    "merge": MgkSpec(merge=2),
    "mhe 3": MheSpec(groups=3),
    "pruned quarter": PrunedSpec(keep=0.75),
    "pruned half": PrunedSpec(keep=0.5),
}
REFINED = ("collab 96", "low-rank 96", "mhe 3")  # to the original's attention maps, where that is the objective
TASKS = ("mrpc", "rte")
KINDS = ("enough", "texts", "healed", "made", "pairs")
PAIRS = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument(
        "--scores",
        nargs="*",
        default=list(REFINED),
        choices=METHODS,
        metavar="METHOD",
        help="methods that are also measured with the objective scores",
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what is calibrated on")
    parser.add_argument("--samples", type=int, default=1024, help="texts to calibrate on (default 1024)")
    parser.add_argument("--passages", type=int, default=1, help="times as many of each length to measure on")
    parser.add_argument(
        "--enough",
        nargs="*",
        default=list(METHODS),
        choices=METHODS,
        metavar="METHOD",
        help="methods that are also calibrated on as many texts as `convert` reads where nothing is said",
    )
    parser.add_argument(
        "--healed", nargs="*", default=["pruned half"], choices=METHODS, metavar="METHOD", help="that are also healed"
    )
    parser.add_argument("--steps", type=int, default=300, help="of healing (default 300)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of healing (default float32)")


class Inputs:
    """What is measured on: passages of WikiText by length, STS-B dev, and pairs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.source, self.model = load("minilm", options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.source.folder)
        lines = (options.data / TEXT).read_text(encoding="utf-8").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        options.work.mkdir(parents=True, exist_ok=True)
        self.text = options.work / "wikitext-first-half.txt"
        self.text.write_text("\n".join(lines[: len(lines) // 2]), encoding="utf-8")
        self.measured = {str(length): self._passages(lines[len(lines) // 2 :], length) for length in LENGTHS}
        sentences = [row[side] for row in read_jsonl(files("stsb", options).dev) for side in ("sentence1", "sentence2")]
        self.measured["stsb"] = self._batches(encode_text(sentences, self.source.folder))
        for task in TASKS:
            rows = read_jsonl(str(options.data / "glue" / f"{task}-dev.jsonl"))[:PAIRS]
            pairs = [(row["sentence1"], row["sentence2"]) for row in rows]
            self.measured[task] = self._batches(encode_text(pairs, self.source.folder))

    def _passages(self, lines: list[str], length: int) -> list[Batch]:
        """Consecutive tokens of the text, special ones around each passage."""
        ids = self.tokenizer(" ".join(lines), add_special_tokens=False, verbose=False)["input_ids"]
        body, (first, last) = length - 2, (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        count = LENGTHS[length] * self.options.passages
        starts = range(0, len(ids) - body, max(body, (len(ids) - body) // count))
        return self._batches([{"input_ids": [first, *ids[start : start + body], last]} for start in starts])

    def _batches(self, examples: list[dict[str, Any]]) -> list[Batch]:
        return make_batches(examples, self.model.config)

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        """Cosine of pooled embeddings by inputs; of pairs also that of tokens."""
        found = {name: measure_drift(model, self.model, batches).cosine for name, batches in self.measured.items()}
        return {**found, **{f"{task}_token": self._token_cosine(model, self.measured[task]) for task in TASKS}}

    def _token_cosine(self, model: PreTrainedModel, batches: list[Batch]) -> float:
        total, count = 0.0, 0
        for batch in batches:
            states = [one(**batch).last_hidden_state.detach() for one in (model, self.model)]
            here, there = (token_rows(one, output_mask(batch, one)) for one in states)
            total += float(here.mul(there).sum(-1).div(here.norm(dim=-1) * there.norm(dim=-1)).sum())
            count += len(here)
        return total / count


def run(options: argparse.Namespace) -> None:
    inputs = Inputs(options)
    kept = options.results / "lengths.json"
    rows = {_place(row): row for row in (json.loads(kept.read_text())["rows"] if kept.is_file() else ())}
    for kind in options.kinds:
        for name, make in _rows(kind, inputs):
            times, more = {}, ""
            if options.passages > 1:
                times, more = {"passages": options.passages}, f"-x{options.passages}"
            done = options.work / f"{name}-{options.samples}{more}.json".replace(" ", "-")
            if not done.is_file():
                done.write_text(json.dumps({**make(), **times, "date": str(datetime.date.today())}))
            row = shown(json.loads(done.read_text()))
            rows[_place(row)] = row
            save("lengths", {"rows": [rows[place] for place in sorted(rows)]}, options)


def _place(row: dict[str, Any]) -> tuple[int, bool, int, int]:
    """Where a row stands among all."""
    refined = row["objective"] == "scores" and row["method"] in REFINED
    return KINDS.index(row["calibration"]), refined, list(METHODS).index(row["method"]), row.get("passages", 1)


def _choice(kind: str, inputs: Inputs) -> CalibrationChoice:
    """What a kind of rows is calibrated on."""
    options, texts = inputs.options, (str(inputs.text), files("stsb", inputs.options).train)
    if kind == "made":
        return CalibrationChoice(seed=options.seed)
    if kind == "pairs":
        pairs = str(options.data / "glue" / "mrpc-train.jsonl")
        return CalibrationChoice(pairs, ("sentence1", "sentence2"), samples=512, seed=options.seed, pairs=True)
    return CalibrationChoice(texts, samples=None if kind == "enough" else options.samples, seed=options.seed)


def _rows(kind: str, inputs: Inputs) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """A kind's rows: their names, and what measures them."""
    options, choice = inputs.options, _choice(kind, inputs)
    if kind == "healed":
        for method in options.healed:
            yield f"healed-{method}", partial(_healed, inputs, choice, method)
        return
    chosen = {"texts": options.methods, "enough": options.enough}.get(kind, ["collab 96"])
    scores = [] if kind == "enough" else [one for one in options.scores if one in chosen]
    data = load_data(choice, inputs.model, inputs.source.folder, enough=True)
    for objective, methods in (("attention", chosen), ("scores", scores)):
        for method in methods:
            yield f"{kind}-{method}-{objective}", partial(_row, inputs, data.batches, kind, method, objective)


def _row(inputs: Inputs, batches: list[Batch], kind: str, method: str, objective: str) -> dict[str, Any]:
    """A method converted on some batches, and measured."""
    with Timer() as timer:
        model, report = hf_heads.convert(
            inputs.model, METHODS[method], calibration=batches, objective=objective, seed=inputs.options.seed
        )
    count = sum(len(batch["input_ids"]) for batch in batches)
    row = {"calibration": kind, "samples": count, "method": method, "objective": report.objective}
    return {**row, "seconds": timer.seconds, **inputs.score(model)}


def _healed(inputs: Inputs, choice: CalibrationChoice, method: str) -> dict[str, Any]:
    """A method converted on the texts of many lengths, healed on the same texts in mixed lengths, and measured."""
    options = inputs.options
    shot, healed = (options.work / f"{method}{end}".replace(" ", "-") for end in ("", "-healed"))
    convert_checkpoint(
        ConversionRequest(inputs.source, METHODS[method], calibration=choice, device=options.device),
        shot,
        overwrite=True,
    )
    with Timer() as timer:
        run = distill_checkpoint(
            Source(str(shot), shot),
            healed,
            DistillSettings(steps=options.steps, precision=options.precision),
            choice,
            teacher=str(inputs.source.given),
            overwrite=True,
            device=options.device,
        ).distillation
    model = AutoModel.from_pretrained(healed).eval()
    row = {"calibration": "healed", "method": method, "objective": "attention", "steps": run["steps"]}
    return {**row, "seconds": timer.seconds, **inputs.score(model)}
