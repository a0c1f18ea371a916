"""Whether heads matter alike on two sets of rows: losses without each, correlated (arXiv 1905.10650, section 3.4).

--other is of another domain or task with the same labels. The loss without each head is measured on both, and so is the
importance by gradients. By default a MiniLM that knows MRPC, news, is measured on its dev pairs and on pairs of STS-B,
captions and forums, which count as paraphrases from 4 points on and as none up to 2. Draws a figure.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_heads import head_mask, rank_heads
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.jobs.scoring.agreement import agreement
from hf_heads.modeling.blocks import block_shape
from studies.shared.classifiers import RATE, STEPS, add_labelled, labelled, settle
from studies.shared.drawing import draw_points
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import figure, save, shown

SAME, OTHER = 4, 2  # points of STS-B
SMALL_STEPS, SMALL_RATE, SMALL_ROWS = 40, 2e-4, 32  # of a MiniLM's fine-tuning; of each set


def add_options(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser, "mrpc")
    about = "rows of another domain or task, labelled alike (default: pairs of STS-B below --data)"
    parser.add_argument("--other", metavar="FILE", help=about)


def paraphrases(options: argparse.Namespace) -> str:
    """Pairs of STS-B that are clearly paraphrases or clearly none, in a file below --work."""
    if None in (options.data, options.work):
        raise HeadsError("no rows of another domain: name --other, or the folders --data and --work to make some")
    rows = [row for row in read_jsonl(files("stsb", options).dev) if not OTHER < row["score"] < SAME]
    pairs = [{name: row[name] for name in ("sentence1", "sentence2")} | {"label": row["score"] >= SAME} for row in rows]
    path = options.work / "stsb-paraphrases.jsonl"
    path.write_text("".join(json.dumps({**pair, "label": int(pair["label"])}) + "\n" for pair in pairs), "utf-8")
    return str(path)


@torch.no_grad()
def losses(model: PreTrainedModel, batches: list[Batch]) -> tuple[float, dict[str, list[float]]]:
    """The mean loss of a classifier, and by block how much it grows without each head."""

    def loss(mask: dict[str, torch.Tensor]) -> float:
        with head_mask(model, mask):
            each = [
                functional.cross_entropy(model(**inputs).logits.cpu(), labels, reduction="none")
                for inputs, labels in given
            ]
        return float(torch.cat(each).mean())

    model.eval()
    given = [
        ({name: value.to(model.device) for name, value in batch.items() if name != "labels"}, batch["labels"])
        for batch in batches
    ]
    whole, found = loss({}), {}
    for block in find_blocks(model):
        ones = torch.ones(block_shape(block).heads)
        found[block.name] = [loss({block.name: 1 - one}) - whole for one in ones.diag()]
    return whole, found


def run(options: argparse.Namespace) -> None:
    steps = SMALL_STEPS if options.small else STEPS
    source = settle(options, "mrpc", steps=steps, rate=SMALL_RATE if options.small else RATE)
    model = load_source(source, options.device)
    others = options.other or paraphrases(options)
    here, there = (labelled(options, path, model, source, SMALL_ROWS) for path in (options.dev, others))
    (whole, one), (whole_there, other) = (losses(model, batches) for batches in (here, there))
    scores = [rank_heads(model, "gradient", batches, steps=1, normalize=True) for batches in (here, there)]
    rows = [
        shown({"what": "loss without the head", **agreement(one, other, options.seed)._asdict()}),
        shown({"what": "importance", **agreement(*(one.importance for one in scores), options.seed)._asdict()}),
    ]
    counts = [sum(len(batch["labels"]) for batch in batches) for batches in (here, there)]
    kept = {"tuned for": None if options.model else steps, "losses": [whole, whole_there], "examples": counts}
    save("head_correlation", {**kept, "rows": rows}, options)
    points = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    axes = "change of the loss without it, rows of --dev", "the same, rows of --other"
    title = "Losses without each head on two sets of rows"
    draw_points(figure(options, "head_correlation.png"), {"a head": points}, *axes, title)
