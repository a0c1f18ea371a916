"""Sounds of WAV files as samples between -1 and 1; no library is needed for them."""

from __future__ import annotations

import csv
import io
import json
import wave
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_heads.core.errors import HeadsError

LONGEST = 10  # seconds of a sound that are read
SOUND_ENDINGS = {".wav", ".flac", ".mp3", ".ogg"}
_STARTS = (b"RIFF", b"fLaC", b"ID3", b"OggS", b"\xff\xfb", b"\xff\xf3")
_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Sound(NamedTuple):
    """A sound.

    Attributes:
        samples: (count,), the mean over its channels.
        rate: samples in a second.
    """

    samples: Tensor
    rate: int


def is_sound(value: Any) -> bool:
    """Whether a value is the bytes of a sound's file, or a dict that holds them or where they are."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content.startswith(_STARTS) and (not content.startswith(b"RIFF") or content[8:12] == b"WAVE")
    path = value.get("path") if isinstance(value, dict) else None
    return isinstance(path, str) and Path(path).suffix.lower() in SOUND_ENDINGS


def sound_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each sound in a folder, with what `metadata.jsonl` or `metadata.csv` says of it.

    `datasets` reads such folders alike, with a library for all kinds of sounds that need not be there for these.

    Raises:
        HeadsError: the metadata does not name a file that is there.
    """
    said: dict[Path, dict[str, Any]] = {}
    for name in ("metadata.jsonl", "metadata.csv"):
        for file in sorted(folder.rglob(name)):
            text = file.read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if line.strip()]
            rows = map(json.loads, lines) if name.endswith("l") else csv.DictReader(lines)
            for row in rows:
                path = file.parent / str(row.pop("file_name", ""))
                if not path.is_file():
                    raise HeadsError(f"'{file}' names '{path.name}' as file_name, and there is no such file beside it")
                said[path] = row
    columns = list(dict.fromkeys(name for row in said.values() for name in row))
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_ENDINGS)
    return [
        {"audio": {"path": str(path)}, **{name: said.get(path, {}).get(name) for name in columns}} for path in sounds
    ]


def to_sound(value: Any) -> Sound:
    """A sound of the bytes of a file, or of a dict that holds them or the path; `LONGEST` seconds of its beginning.

    Raises:
        HeadsError: it is no WAV file of whole numbers.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    content = Path(value["path"]).read_bytes() if content is None else content
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            frames = bytearray(file.readframes(LONGEST * rate))
    except (wave.Error, EOFError) as error:
        raise HeadsError(
            f"a sound cannot be read ({error}): WAV files of whole numbers can, convert it to one"
        ) from None
    if width not in _TYPES or not frames:
        raise HeadsError(f"a sound has samples of {8 * width} bits or none at all: give WAV files of 8, 16 or 32 bits")
    samples = torch.frombuffer(frames, dtype=_TYPES[width]).double()
    samples = samples / 128 - 1 if width == 1 else samples / 2.0 ** (8 * width - 1)
    return Sound(samples.view(-1, channels).mean(1).float(), rate)
