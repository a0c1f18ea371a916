"""MiniLM converted on texts of many lengths: cosine to the original by length, and on pairs, for every method.

Texts and their lengths are packed as the command line does it. WikiText is cut in two by lines: its first half is
calibrated on together with STS-B train, passages of its second half are measured on. Without labels. A row that is in
--work already is not measured again, so that a study can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

import hf_heads
from hf_heads import CalibrationChoice, CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.core.batches import Batch, output_mask, token_rows
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.calibration import load_data
from hf_heads.io.data.encoding import encode_text
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
TASKS = ("mrpc", "rte")
PAIRS = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument(
        "--scores",
        nargs="*",
        default=["collab 96", "low-rank 96", "mhe 3"],
        choices=METHODS,
        metavar="METHOD",
        help="methods that are also measured with the objective scores",
    )
    parser.add_argument(
        "--kinds", nargs="+", default=["texts", "enough", "made", "pairs"], help="what is calibrated on"
    )
    parser.add_argument("--samples", type=int, default=1024, help="texts to calibrate on (default 1024)")
    parser.add_argument(
        "--enough",
        nargs="*",
        default=["low-rank 96", "merge", "mhe 3"],
        choices=METHODS,
        metavar="METHOD",
        help="methods that are also calibrated on as many texts as `convert` reads where nothing is said",
    )


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
        starts = range(0, len(ids) - body, max(body, (len(ids) - body) // LENGTHS[length]))
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
    texts = (str(inputs.text), files("stsb", options).train)
    choices = {
        "texts": CalibrationChoice(texts, samples=options.samples, seed=options.seed),
        "enough": CalibrationChoice(texts, seed=options.seed),
        "made": CalibrationChoice(seed=options.seed),
        "pairs": CalibrationChoice(
            str(options.data / "glue" / "mrpc-train.jsonl"),
            ("sentence1", "sentence2"),
            samples=512,
            seed=options.seed,
            pairs=True,
        ),
    }
    of_kind = {"texts": options.methods, "enough": options.enough}
    rows = []
    for kind in options.kinds:
        data = load_data(choices[kind], inputs.model, inputs.source.folder, enough=True)
        chosen = of_kind.get(kind, ["collab 96"])
        scores = [] if kind == "enough" else [one for one in options.scores if one in chosen]
        for objective, methods in (("attention", chosen), ("scores", scores)):
            for method in methods:
                name = f"{kind}-{method}-{objective}-{options.samples}.json"
                kept = options.work / name.replace(" ", "-")
                if not kept.is_file():
                    kept.write_text(json.dumps(_row(inputs, data.batches, kind, method, objective)))
                rows.append(shown(json.loads(kept.read_text())))
                save("lengths", {"rows": rows}, options)


def _row(inputs: Inputs, batches: list[Batch], kind: str, method: str, objective: str) -> dict[str, Any]:
    """A method converted on some batches, and measured."""
    with Timer() as timer:
        model, report = hf_heads.convert(
            inputs.model, METHODS[method], calibration=batches, objective=objective, seed=inputs.options.seed
        )
    count = sum(len(batch["input_ids"]) for batch in batches)
    row = {"calibration": kind, "samples": count, "method": method, "objective": report.objective}
    return {**row, "seconds": timer.seconds, **inputs.score(model)}
