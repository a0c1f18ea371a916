"""Sounds, and images with captions, from whatever `datasets` loads."""

from __future__ import annotations

import json
import math
import struct
import wave
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hf_heads import HeadsError
from hf_heads.io.data.calibration import CalibrationChoice, load_data
from hf_heads.io.data.sounds import to_sound
from tests.contract.test_hosts import HOSTS
from tests.support.tokenizers import save_image_processor, save_tokenizer

RATE = 1000


def write_sound(path: Path, samples: list[float], rate: int = RATE, width: int = 2, channels: int = 1) -> None:
    kinds = {1: "B", 2: "h", 4: "i"}
    whole = [round(128 + 127 * one) if width == 1 else round(one * (2 ** (8 * width - 1) - 1)) for one in samples]
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(whole)}{kinds[width]}", *whole))


def write_folder(data: Path, rate: int = RATE) -> Path:
    """Twelve sounds of two lengths with transcripts, as `datasets` reads such folders."""
    data.mkdir()
    lines = []
    for index in range(12):
        length = 400 if index % 2 else 500
        write_sound(data / f"{index}.wav", [math.sin(index + place / 9) for place in range(length)], rate)
        lines.append(json.dumps({"file_name": f"{index}.wav", "transcription": f"word{index} word1"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    return data


@pytest.mark.parametrize("width", [1, 2, 4])
def test_samples_are_those_that_were_written(width: int, tmp_path: Path):
    write_sound(tmp_path / "it.wav", [0.5, -0.5, 0.25, -0.75], width=width, channels=2)
    sound = to_sound((tmp_path / "it.wav").read_bytes())
    assert sound.rate == RATE
    assert torch.allclose(sound.samples, torch.tensor([0.0, -0.25]), atol=0.01)


def test_sounds_are_batched_by_length(tmp_path: Path):
    folder = write_folder(tmp_path / "sounds")
    model = HOSTS["wav2vec2"].model()
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(tmp_path)
    data = load_data(CalibrationChoice(str(folder), samples=8), model, tmp_path)
    assert {batch["input_values"].shape[1] for batch in data.batches} == {400, 500}
    assert sum(len(batch["input_values"]) for batch in data.batches) == 8
    with torch.no_grad():
        assert all(torch.isfinite(model(**batch).logits).all() for batch in data.batches)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(tmp_path)
    with pytest.raises(HeadsError, match="1000 samples in a second, the model takes 16000: resample"):
        load_data(CalibrationChoice(str(folder)), model, tmp_path)


def test_transcripts_are_what_the_decoder_reads(tmp_path: Path):
    folder, model = write_folder(tmp_path / "sounds", 16_000), HOSTS["whisper"].model()
    WhisperFeatureExtractor(feature_size=8, hop_length=660, chunk_length=1).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    data = load_data(CalibrationChoice(str(folder), samples=8), model, tmp_path)
    batch = data.batches[0]
    assert batch["input_features"].shape == (8, 8, 24)
    assert batch["decoder_input_ids"].shape == (8, 4) and batch["decoder_attention_mask"].all()
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_a_data_set_of_sounds_is_read_without_a_library_that_decodes_them(tmp_path: Path):
    """As those of the hub are: a column of the kind `Audio`, whose files lie in the table."""
    folder = write_folder(tmp_path / "sounds")
    clips = [{"bytes": (folder / f"{index}.wav").read_bytes(), "path": None} for index in range(12)]
    given = datasets.Dataset.from_dict({"clip": clips, "speaker": list(range(12))})
    given.cast_column("clip", datasets.Audio(decode=False)).to_parquet(tmp_path / "data.parquet")
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(tmp_path)
    data = load_data(CalibrationChoice(str(tmp_path / "data.parquet"), samples=8), HOSTS["wav2vec2"].model(), tmp_path)
    assert "(clip)" in data.description
    assert sum(len(batch["input_values"]) for batch in data.batches) == 8


def test_one_of_several_captions_is_named_by_its_number(tmp_path: Path):
    """Data sets of captioned images have a list of them for each."""
    images = [Image.new("RGB", (16, 16), (20 * index, 0, 0)) for index in range(12)]
    said = [[f"word{index}", "word1 word2"] for index in range(12)]
    rows = datasets.Dataset.from_dict({"image": images, "captions": said})
    rows.to_parquet(tmp_path / "data.parquet")
    save_tokenizer(tmp_path)
    save_image_processor(tmp_path)

    def found(columns: tuple[str, ...]) -> list[int]:
        choice = CalibrationChoice(str(tmp_path / "data.parquet"), columns, samples=8)
        batches = load_data(choice, HOSTS["clip"].model(), tmp_path).batches
        return [int(mask.sum()) for batch in batches for mask in batch["attention_mask"]]

    first, second = found(("image", "captions.0")), found(("image", "captions.1"))
    assert len(first) == 8 and {two - one for one, two in zip(first, second, strict=True)} == {1}
    with pytest.raises(HeadsError, match=r"no column 'captions\.2': a row has 2 there, counted from 0"):
        found(("image", "captions.2"))
    with pytest.raises(HeadsError, match="has no text column"):
        found(("image",))


def test_captions_go_with_their_images(tmp_path: Path):
    data = tmp_path / "images"
    data.mkdir()
    lines = []
    for index in range(12):
        Image.new("RGB", (16, 16), (20 * index, 0, 0)).save(data / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"word{index}"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    save_tokenizer(tmp_path)
    save_image_processor(tmp_path)
    found = load_data(CalibrationChoice(str(data), samples=8), HOSTS["clip"].model(), tmp_path)
    rows = [(int(ids[1]) - 5, float(pixels[0, 0, 0])) for batch in found.batches for ids, pixels in _examples(batch)]
    assert len(rows) == 8
    ordered = [pixel for _, pixel in sorted(rows)]
    assert ordered == sorted(ordered) and len(set(ordered)) == 8


def _examples(batch: dict[str, torch.Tensor]) -> zip:
    return zip(batch["input_ids"], batch["pixel_values"], strict=True)


@pytest.mark.parametrize(
    ("content", "message"), [(b"fLaC" + bytes(40), "WAV"), (b"RIFF\x00\x00\x00\x00WAVEfmt ", "cannot be read")]
)
def test_other_sounds_are_refused(content: bytes, message: str):
    with pytest.raises(HeadsError, match=message):
        to_sound({"bytes": content, "path": None})


def test_a_folder_of_images_is_none_of_sounds(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "it.png")
    with pytest.raises(HeadsError, match="has no audio column"):
        load_data(CalibrationChoice(str(tmp_path)), HOSTS["wav2vec2"].model(), tmp_path)


def test_metadata_of_a_sound_that_is_not_there(tmp_path: Path):
    folder = write_folder(tmp_path / "sounds")
    (folder / "3.wav").unlink()
    with pytest.raises(HeadsError, match=r"names '3\.wav' as file_name, and there is no such file"):
        load_data(CalibrationChoice(str(folder)), HOSTS["wav2vec2"].model(), tmp_path)
