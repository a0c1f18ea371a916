"""MiniLM on the STS benchmark: Spearman correlation of cosine and human score, and drift of the embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_heads
from hf_heads.core.batches import Batch, main_output, mean_pool
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.encoding import encode_text
from hf_heads.jobs.conversion.report import Report
from hf_heads.jobs.evaluation.metrics import spearman
from studies.shared.inputs import calibration, files, load, read_jsonl
from studies.shared.running import Timer


class Sentences:
    """The model, its data, and its embeddings of all dev sentences.

    Attributes:
        model: the original.
        files: of the STS benchmark.
        base: its Spearman correlation x 100.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.source, self.model = load("minilm", options)
        self.files = files("stsb", options)
        rows = read_jsonl(self.files.dev)
        self.scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        texts = [row[side] for side in ("sentence1", "sentence2") for row in rows]
        examples = [{**one, "index": index} for index, one in enumerate(encode_text(texts, self.source.folder))]
        self.batches = make_batches(examples, self.model.config)
        self.original = self.embed(self.model)
        self.base = self.spearman(self.original)

    def calibration(self, path: str | None = None, samples: int = 512) -> list[Batch]:
        """Batches of sentences; of the training sentences without a path."""
        return calibration(self.source, self.model, self.options, path or self.files.train, samples)

    @torch.no_grad()
    def embed(self, model: PreTrainedModel) -> Tensor:
        """Normalised mean-pooled embeddings, (2 * pairs, width): all first sentences, then all second ones."""
        found = torch.empty(2 * len(self.scores), model.config.hidden_size)
        for batch in self.batches:
            inputs = {name: value for name, value in batch.items() if name != "index"}
            states = main_output(model, inputs)[0]
            found[batch["index"]] = mean_pool(states.float(), batch["attention_mask"]).cpu()
        return torch.nn.functional.normalize(found, dim=-1)

    def spearman(self, embeddings: Tensor) -> float:
        """Spearman correlation x 100."""
        first, second = embeddings.double().chunk(2)
        return float(spearman(torch.stack([(first * second).sum(1), self.scores], 1)))

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        """Spearman, its drop against the original, and the mean cosine of the embeddings to the original's."""
        embeddings = self.embed(model)
        found = self.spearman(embeddings)
        cosine = float((embeddings * self.original).sum(1).mean())
        return {"spearman": found, "drop": self.base - found, "cosine": cosine}

    def converted(
        self,
        spec: hf_heads.HeadsSpec | dict[str, hf_heads.HeadsSpec],
        batches: Sequence[Batch] | None,
        **more: bool,
    ) -> tuple[dict[str, Any], Report]:
        """The scores of a converted model with the seconds that converting took, and the conversion's report."""
        with Timer() as timer:
            model, report = hf_heads.convert(self.model, spec, calibration=batches, **more)
        parameters = sum(block.parameters for block in report.blocks)
        return {**self.score(model), "seconds": timer.seconds, "attention_parameters": parameters}, report
