"""Writes small checkpoints of the format at hand: `python tests/regression/make.py FOLDER`.

The folders beside this file were written by it with the code of commit b7dba20 (format 1) and never again: what is
tested is that they keep loading to the same bits. Run it for a newer format into a folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import hf_heads  # noqa: F401

SMALL = {"num_attention_heads": 4, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
METHODS = {
    "collab": ["--to", "collab", "--rank", "6"],
    "collab-tucker": ["--to", "collab", "--rank", "6", "--form", "tucker"],
    "low-rank": ["--to", "low-rank", "--rank", "8"],
    "mhe": ["--to", "mhe", "--groups", "2"],
    "mhe-add": ["--to", "mhe", "--variant", "add"],
    "mgk": ["--to", "mgk"],
    "mgk-merged": ["--to", "mgk", "--merge", "2"],
    "pruned": ["--to", "pruned", "--keep", "0.5", "--score", "weights"],
}


def originals() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=40, max_position_embeddings=20, num_labels=3, **SMALL)
    vit = ViTConfig(image_size=8, patch_size=4, num_labels=3, encoder_stride=4, **SMALL)
    marian = MarianConfig(
        vocab_size=40,
        decoder_vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=20,
        pad_token_id=39,
        decoder_start_token_id=39,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    models = {
        "bert": BertForSequenceClassification(bert),
        "vit": ViTForImageClassification(vit),
        "marian": MarianMTModel(marian),
    }
    for model in models.values():
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    return models


def inputs(host: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if host == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    ids = torch.randint(1, 38, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    if host == "marian":
        found["decoder_input_ids"] = torch.randint(1, 38, (2, 5), generator=generator)
    return found


def main(folder: Path) -> None:
    for host, model in originals().items():
        place = folder / host
        place.mkdir(parents=True)
        outputs = folder / "outputs"
        outputs.mkdir(exist_ok=True)
        model.eval().save_pretrained(place / "original")
        for name, options in METHODS.items():
            command = ["-m", "hf_heads.cli", "convert", "original", *options, "--calibration-samples", "16"]
            subprocess.run([sys.executable, *command, "--output", name], cwd=place, check=True)
            for file in ("README.md", f"modeling_heads_{host}.py"):
                (place / name / file).unlink()
            found = {}
            for implementation in ("eager", "sdpa"):
                loaded = AutoModel.from_pretrained(place / name, attn_implementation=implementation)
                with torch.no_grad():
                    found[implementation] = loaded(**inputs(host))[0].contiguous()
            save_file({**inputs(host), **found}, outputs / f"{host}-{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
