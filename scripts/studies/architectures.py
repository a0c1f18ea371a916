"""Quality of converted Marian and ViT checkpoints: BLEU and accuracy by what they were calibrated on.

    python scripts/architectures.py --marian DIR --pairs-train train.jsonl --pairs-dev val.jsonl \\
        --vit DIR --images-train calibration.parquet --images-dev dev.parquet

Writes scripts/results/architectures.json.
"""

from __future__ import annotations

import datasets
import torch
from common import bleu, parser, read_jsonl, save, start
from transformers import AutoImageProcessor, PreTrainedModel

import hf_heads
from hf_heads import CollabSpec, LowRankSpec
from hf_heads.checkpoints.loading import load_source
from hf_heads.checkpoints.sources import resolve_source
from hf_heads.data.calibration import CalibrationChoice, calibration_data
from hf_heads.evaluation.drift import measure_drift

SHARES = {"marian": (4,), "vit": (8,)}  # of the width


@torch.no_grad()
def accuracy(model: PreTrainedModel, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right classes in per cent."""
    found = torch.cat([model(pixel_values=part).logits.argmax(-1) for part in pixels.split(100)])
    return 100 * float((found == labels).float().mean())


def main() -> None:
    options = parser(__doc__)
    for name in ("marian", "pairs-train", "pairs-dev", "vit", "images-train", "images-dev"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("--sentences", type=int, default=500, help="how many pairs to translate (default 500)")
    options = options.parse_args()
    start(options)
    rows: list[dict] = []

    rows_dev = read_jsonl(options.pairs_dev)[: options.sentences]
    images = datasets.load_dataset("parquet", data_files=options.images_dev, split="train")
    processor = AutoImageProcessor.from_pretrained(options.vit)
    pixels = torch.cat(
        [processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in images["image"]]
    )
    labels = torch.tensor(images["label"])
    tasks = {
        "marian": (options.marian, options.pairs_train, ("en", "de"), lambda m: bleu(m, options.marian, rows_dev)),
        "vit": (options.vit, options.images_train, None, lambda m: accuracy(m, pixels, labels)),
    }
    for name, (folder, data, columns, score) in tasks.items():
        source = resolve_source(folder)
        model = load_source(source)
        width = model.config.hidden_size
        held_out = calibration_data(source, model, CalibrationChoice(data, columns, 512, 1)).held_out
        base = score(model)
        rows.append({"model": name, "label": "original", "score": base})
        print(name, "original", f"{base:.2f}", flush=True)
        specs: dict[str, hf_heads.HeadsSpec] = {}
        for share in SHARES[name]:
            specs[f"collab R = {width // share}"] = CollabSpec(rank=width // share)
            specs[f"low-rank R = {width // share}"] = LowRankSpec(rank=width // share)
        for kind, choice in {
            "data": CalibrationChoice(data, columns),
            "random": CalibrationChoice("random"),
            "white": None,  # for images, to see what the spectrum of the made ones is worth
            "none": None,
        }.items():
            if kind == "white" and name != "vit":
                continue
            batches = None if choice is None else calibration_data(source, model, choice).batches
            if kind == "white":
                generator = torch.Generator().manual_seed(0)
                batches = [{"pixel_values": torch.randn(32, *pixels.shape[1:], generator=generator)} for _ in range(16)]
            for label, spec in specs.items():
                converted, _ = hf_heads.convert(model, spec, calibration=batches)
                row = {"model": name, "label": label, "calibration": kind, "score": score(converted)}
                row |= measure_drift(converted, model, held_out).to_dict()
                rows.append(row)
                print(
                    name, label, kind, f"{row['score']:.2f} kl {row['kl']:.6f} agree {row['agreement']:.3f}", flush=True
                )
    save("architectures", {"sentences": len(rows_dev), "images": len(labels), "rows": rows}, options)


if __name__ == "__main__":
    main()
