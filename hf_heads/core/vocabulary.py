"""Words that several rooms share: rules, losses, metrics, file names. Nothing here needs torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

VERSION = "0.1.0"


def percent(before: int, after: int) -> str:
    """The change from one number to another, such as `-12.5 %`."""
    return f"{100 * (after - before) / before:+.1f} %" if before else "0 %"


# What the drift's figures are called: the hub's name of the metric, and in words.
METRICS = {
    "cosine": ("cosine_similarity", "cosine similarity to the original's outputs"),
    "max_difference": ("max_absolute_difference", "largest absolute difference from the original's outputs"),
    "kl": ("kl_divergence", "Kullback-Leibler divergence from the original's outputs, nats"),
    "agreement": ("agreement", "share of the original's predictions that are the same"),
    "drift": ("relative_squared_error", "relative squared error against the original's outputs"),
}
PREFIX = "heads_"
RULES = {
    "gauss-newton": "how far the model's output moves without the head, predicted; needs no labels",
    "gradient": "mean over examples of |dL/d(mask)|, the rule of arXiv 1905.10650; needs labels",
    "ablation": "how far the model's output moves without the head, measured; needs no labels",
    "weights": "size of the head's value-output map; needs no data",
    "random": "at random: the control",
}
UNITS = {
    "example": "the gradient of each example's loss by the mask, as arXiv 1905.10650 defines it",
    "token": "of each token's share in it, as the authors' code computes it",
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
MATCHING = "matching"  # the job that fine-tuning on pairs lives by
JOBS = {
    MATCHING: "the same token in the other of two texts",
    "same": "the same token elsewhere (in the same text; in a decoder, earlier)",
    "previous": "the token before",
    "next": "the token behind",
    "induction": "the token behind an earlier occurrence of the same one",
    "self": "a patch itself",
    "left": "the patch to the left",
    "right": "the patch to the right",
    "up": "the patch above",
    "down": "the patch below",
    "special": "separators and other special tokens",
    "first": "the first token",
}
SINKS = ("special", "first")  # where heads look that have nothing to look for
INPUTS = {
    "converted": "what reaches a block behind those that were converted before it, whose errors it then makes up for",
    "original": "what reaches it in the original, which runs once for all blocks and, with a cache, for all settings",
}
ACTIVATIONS = {
    "auto": "in memory up to 1 GiB, what is more on disk",
    "memory": "in memory",
    "disk": "on disk: in files without names, which are gone whatever ends the process",
}
LESSONS = {
    "auto": "kept in memory where a run sees examples more than once and they take up to 2 GiB, else computed anew",
    "memory": "kept in memory",
    "disk": "kept on disk: in files without names, which are gone whatever ends the process",
    "anew": "computed anew for every batch",
}
COMPUTE = {
    "float32": "as it is in the files, or more precisely",
    "bfloat16": "products in bfloat16, faster where the processor has such; statistics stay in float64",
}
OBJECTIVES = {
    "scores": "squared errors of the scores between all tokens, as the data spreads them",
    "attention": "then the divergence of the attention maps, with tokens that repeat among the inputs",
}
BFLOAT16, INT8 = "bfloat16", "int8"
PRECISIONS = (BFLOAT16, "float16", INT8)  # in which a model is compared with itself in float32
REPORT = "heads_report.json"
RANDOM, NONE = "random", "none"  # what may stand where the name of a data set can


def printable(text: str) -> str:
    """Text without characters that steer a terminal; they are written as escapes, line ends and tabs stay."""
    return "".join(
        one if one in "\n\t" or not unicodedata.category(one).startswith("C") else repr(one)[1:-1] for one in text
    )


def one_line(text: str) -> str:
    """Text as `printable` makes it, line ends and tabs too, and of at most 1,000 characters: the middle is left out."""
    kept = text if len(text) <= 1_000 else f"{text[:700]} ... {text[-250:]}"
    shown = printable(kept).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= 1_000 else f"{shown[:700]} ... {shown[-250:]}"


def shortened(text: str) -> str:
    """Text of at most 80 characters, the middle left out."""
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-35:]}"


def lowest_cosine(drift: Mapping[str, Mapping[str, float | None]]) -> tuple[str, float] | None:
    """The inputs of a record's drift on which a model keeps the least, and their cosine; None where there is none."""
    cosines = {inputs: cosine for inputs, row in drift.items() if (cosine := row.get("cosine")) is not None}
    return min(cosines.items(), key=lambda item: item[1]) if cosines else None


def of_length(inputs: str, length: int) -> str:
    """What inputs of so many tokens are called in records, as `random of 128 tokens`."""
    return f"{inputs} of {length} tokens"


def in_precision(figure: str, precision: str) -> str:
    """What a figure of a model in a lower precision against itself in float32 is called, as `cosine in bfloat16`."""
    return f"{figure} in {precision}"
