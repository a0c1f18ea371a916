"""The rules by which heads are ranked: names and what a score is."""

from __future__ import annotations

RULES = {
    "gauss-newton": "how far the model's output moves without the head, predicted; needs no labels",
    "gradient": "mean over examples of |dL/d(mask)|, the rule of arXiv 1905.10650; needs labels",
    "ablation": "how far the model's output moves without the head, measured; needs no labels",
    "weights": "size of the head's value-output map; needs no data",
    "random": "at random: the control",
}
CONSTANT_RULES = ("weights", "random")  # these need no data, and no second round would change them

LOSSES = {
    "output": "the model's outputs: KL of logits, or squared error of last hidden states of a model without a head",
    "embedding": "1 - cosine of mean-pooled last hidden states (models without a head)",
    "hidden": "squared error of the hidden states between the layers",
    "blocks": "squared error of the outputs of the attention blocks",
    "attention": "KL of the attention maps, head by head (runs both models in eager)",
    "task": "the student's own loss on labels",
}
