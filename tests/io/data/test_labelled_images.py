"""Labelled batches of images: labels from folders and from tables."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from hf_heads import HeadsError
from tests.support.labelled import (
    check_loss,
    check_same,
    load_labelled,
)
from tests.support.tokenizers import save_image_processor
from tests.support.twins import TWINS


def save_images(folder: Path) -> None:
    """Two folders of images: 20 red dogs, 20 blue cats."""
    for name, colour in (("dog", (250, 0, 0)), ("cat", (0, 0, 250))):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (20, 24), colour).save(folder / name / f"{index}.png")


def test_images_in_folders_are_labelled_by_the_folders(tmp_path: Path):
    model = TWINS["vit"].model()
    save_image_processor(tmp_path)
    save_images(tmp_path / "images")
    batches = load_labelled(str(tmp_path / "images"), model, tmp_path, samples=36)
    assert [set(batch) for batch in batches] == [{"pixel_values", "labels"}] * 2
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(32, 3, 16, 16), (4, 3, 16, 16)]
    for batch in batches:
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], red.long())  # in alphabetical order: cat, dog
    check_loss(model, batches)
    check_same(batches, load_labelled(str(tmp_path / "images"), model, tmp_path, samples=36))
    model.config.label2id = {"dog": 3, "cat": 4}
    for batch in load_labelled(str(tmp_path / "images"), model, tmp_path):
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], torch.where(red, 3, 4))


def test_images_in_a_table(tmp_path: Path):
    model = TWINS["vit"].model()
    save_image_processor(tmp_path)
    save_images(tmp_path / "images")
    paths = [str(path) for path in sorted((tmp_path / "images").rglob("*.png"))]  # cats first
    columns = {"picture": paths, "other": paths, "caption": ["x"] * 40, "species": [4] * 20 + [2] * 20}
    table = datasets.Dataset.from_dict(columns)
    table = table.cast_column("picture", datasets.Image()).cast_column("other", datasets.Image())
    source = str(tmp_path / "images.parquet")
    table.to_parquet(source)
    with pytest.raises(HeadsError, match="has 2 image columns; name one with --columns"):
        load_labelled(source, model, tmp_path)
    batches = load_labelled(source, model, tmp_path, columns=("picture",))
    for batch in batches:
        red = batch["pixel_values"][:, 0, 0, 0] > batch["pixel_values"][:, 2, 0, 0]
        assert torch.equal(batch["labels"], torch.where(red, 2, 4))
    check_loss(model, batches)
    with pytest.raises(HeadsError, match=r"column 'caption' .* holds no image"):
        load_labelled(source, model, tmp_path, columns=("caption",))
    table.remove_columns("species").to_parquet(source)
    with pytest.raises(HeadsError, match="has no label column"):
        load_labelled(source, model, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(HeadsError, match="no image processor"):
        load_labelled(str(tmp_path / "images"), model, tmp_path)
