"""Calibration data: whatever `datasets` loads, or made from nothing, as batches of a model's forward arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_heads.attention.hosts.sites import WRITES
from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.core.batches import Batch
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import NONE, RANDOM
from hf_heads.io.checkpoints.sources import Source
from hf_heads.io.data.batching import make_batches, with_targets
from hf_heads.io.data.choice import TOKENS_ENOUGH, CalibrationChoice
from hf_heads.io.data.encoding import ENCODE, digest
from hf_heads.io.data.labelled import load_labelled
from hf_heads.io.data.lengths import count_cut, examples_by_length, mixed_examples, text_limit
from hf_heads.io.data.made import MADE, made_examples, made_of_length, probe_examples
from hf_heads.io.data.pairs import Pairing, pairing_of
from hf_heads.io.data.reading import read_examples
from hf_heads.io.data.written import cannot_write, is_language_model, written_examples

HELD_OUT = 64
_UNNAMED: dict[str, Any] = {"columns": None, "label": None}  # of made data, which has none
_MOST = 8192  # texts, however short they are
_READ = 4  # times as many texts are read as there are examples: long ones are made of several


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on and batches to measure on.

    Attributes:
        batches: for the statistics.
        held_out: for measuring drift; nothing that `batches` are made of is among them. Empty where there is too
            little.
        description: what the data is, for reports.
        by_length: of texts, more to measure on: batches of texts of so many tokens each, made of what is held out.
    """

    batches: list[Batch]
    held_out: list[Batch]
    description: str
    by_length: dict[int, list[Batch]] = field(default_factory=dict)


_Held = tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]  # examples, and those by length


@dataclass
class _Part:
    """What one source gives.

    Attributes:
        examples: encoded, to calibrate on.
        description: what it all is.
        apart: what is to measure on, by what tells it from others.
        hold: encodes what of that is held out.
        seen: what tells the things apart that the examples are made of.
        columns: that were read.
    """

    examples: list[dict[str, Any]]
    description: str
    apart: dict[Hashable, Any]
    hold: Callable[[list[Any]], _Held]
    seen: set[Hashable] = field(default_factory=set)
    columns: list[str] = field(default_factory=list)


def load_data(
    choice: CalibrationChoice,
    model: PreTrainedModel,
    folder: Path | str | None,
    *,
    generate: Callable[[Batch], Tensor] | None = None,
    enough: bool = False,
    writes: bool = True,
    apart: bool = True,
) -> Data:
    """Calibration data for a model.

    Args:
        choice: what to read, or `random` for data made from nothing.
        model: whose config and class say what inputs it takes.
        folder: where its tokenizer or image processor is, a folder or hub id; None where nobody knows.
        generate: for text-to-text models, target ids for a batch of sources, where the data has no targets.
        enough: read more texts where they are short and nobody says how many, see `CalibrationChoice`.
        writes: a language model writes the data that is made for it; else, and where it cannot, its tokens are random.
        apart: hold out nothing that is in the batches as well; of no use where nobody calibrates on them.

    Raises:
        HeadsError: the data cannot be found or read, has no such column, or is empty; texts of the length that is
            asked for do not fit the model.
    """
    config, several = model.config, len(choice.sources) > 1
    share = -(-choice.count // len(choice.sources))
    pairing = pairing_of(model, choice.pairs)
    parts = []
    for source in choice.sources:
        one = replace(choice, source=source, samples=share, **(_UNNAMED if source == RANDOM else {}))
        tokens = TOKENS_ENOUGH if enough and choice.samples is None else 0
        if one.made and writes and is_language_model(model):
            parts.append(_written(one, model, folder, pairing))
        elif one.made:
            parts.append(_made(one, config, folder, pairing))
        else:
            parts.append(_read(one, config, folder, pairing, several, tokens))
    if choice.columns and not any(set(choice.columns) & set(part.columns) for part in parts):
        raise HeadsError(f"none of the data sets has the columns {', '.join(choice.columns)}")

    def batches(examples: list[dict[str, Any]]) -> list[Batch]:
        return finished_batches(examples, config, generate) if examples else []

    held = _held_out(parts) if apart else [part.hold([*part.apart.values()]) for part in parts]
    lengths = sorted({length for _, by_length in held for length in by_length})
    by_length = {length: [one for _, found in held for one in found.get(length, [])] for length in lengths}
    return Data(
        batches([one for part in parts for one in part.examples]),
        batches([one for examples, _ in held for one in examples]),
        f"{'; '.join(part.description for part in parts)}, seed {choice.seed}",
        {length: batches(examples) for length, examples in by_length.items()},
    )


def _held_out(parts: Sequence[_Part]) -> list[_Held]:
    """What of each part is held out: nothing that is calibrated on in any of them, and nothing twice."""
    seen = set().union(*(part.seen for part in parts))
    found = []
    for part in parts:
        new = {key: one for key, one in part.apart.items() if key not in seen}
        seen |= set(new)
        found.append(part.hold([*new.values()]))
    return found


def _written(choice: CalibrationChoice, model: PreTrainedModel, folder: Path | str | None, pairing: Pairing) -> _Part:
    """What a language model writes itself, nothing held out; random tokens where it cannot, with the reason."""
    if reason := cannot_write(model):
        return _made(choice, model.config, folder, pairing, f" ({reason})")
    longest = choice.max_length
    found = written_examples(model, folder, choice.count, choice.seed, max_length=longest, mixed=choice.pack)
    cost = f"{found.tokens:,} tokens in {found.steps:,} steps"
    words = f"{choice.count} texts of the model's own, drawn after a random token each ({cost})"
    by_length = made_by_length(model.config, folder, None)
    return _Part(found.examples, ", ".join([words, *_tokens(found.examples)]), {}, lambda _: ([], by_length))


def _made(
    choice: CalibrationChoice, config: Any, folder: Path | str | None, pairing: Pairing, reason: str = ""
) -> _Part:
    pairs = (pairing.usual or None) if choice.pairs is None else choice.pairs
    count = choice.count + HELD_OUT
    mixed = choice.pack or bool(choice.pairs)
    examples = made_examples(
        config,
        folder,
        count,
        choice.seed,
        pairs=pairs if mixed else False,
        max_length=choice.max_length if mixed else None,
        mixed=mixed,
    )
    held_out, examples = examples[choice.count :], examples[: choice.count]
    words = [f"{choice.count} {MADE[adapter_of(config).modality]}{reason}"]
    if adapter_of(config).modality == "text" and any("token_type_ids" in example for example in examples):
        words.append("all in two segments" if pairs else "every second in two segments")
    by_length = made_by_length(config, folder, pairs)
    return _Part(examples, ", ".join([*words, *_tokens(examples)]), {}, lambda _: (held_out, by_length))


def _read(
    choice: CalibrationChoice, config: Any, folder: Path | str | None, pairing: Pairing, several: bool, tokens: int
) -> _Part:
    """What a data set gives: of texts more than `choice.count` examples where it takes more to come to `tokens`."""
    modality, source = adapter_of(config).modality, choice.single
    of_one_size = modality not in ("text", "text-to-text")
    count = (choice.count + HELD_OUT) * (1 if of_one_size else _READ)
    raw, used = read_examples(
        source,
        choice.columns,
        modality,
        count,
        choice.seed,
        choice.label,
        paired=pairing.of,
        optional=several,
    )
    name = f"{Path(source).name} ({', '.join(used)})"
    if of_one_size:
        held = min(HELD_OUT, len(raw) // 4)
        found = ENCODE[modality](raw[: choice.count + HELD_OUT], folder, None)
        examples = found[: len(found) - held][: choice.count]
        seen: set[Hashable] = {digest(one) for one in examples}
        kept: dict[Hashable, Any] = {digest(one): one for one in found[len(found) - held :]}
        return _Part(examples, f"{len(examples)} examples of {name}", kept, lambda new: (new, {}), seen, used)
    limit = text_limit(folder, choice.max_length, positions_of(config))
    held = min(HELD_OUT * _READ, len(raw) // 4)
    apart, raw = raw[len(raw) - held :], raw[: len(raw) - held]
    if choice.pack:
        examples = mixed_examples(raw, choice.count, modality, folder, limit, choice.seed)
    else:
        examples = ENCODE[modality](raw[: choice.count], folder, limit)
    here = sum(len(example["input_ids"]) for example in examples)
    if here < tokens and (modality == "text" or isinstance(raw[0], tuple)):  # targets are not written for more
        more = replace(choice, samples=min(_MOST, -(-choice.count * tokens // max(here, 1))))
        return _read(more, config, folder, pairing, several, 0)
    words = [f"{len(examples)} examples of {name}"]
    if modality == "text" and (how := pairing.words(isinstance(raw[0], tuple), len(used))):
        words.append(how)
    words += _tokens(examples)
    if cut := count_cut([*raw[: len(examples)], *apart[:HELD_OUT]], folder, limit):
        words.append(f"{cut} texts cut at {limit}")

    def hold(texts: list[Any]) -> _Held:
        by_length = examples_by_length(texts, modality, folder, limit, choice.seed) if texts else {}
        return ENCODE[modality](texts[:HELD_OUT], folder, limit) if texts else [], by_length

    return _Part(examples, ", ".join(words), dict(zip(apart, apart, strict=True)), hold, set(raw), used)


def _tokens(examples: Sequence[dict[str, Any]]) -> list[str]:
    """Their lengths in words; empty where they are no texts."""
    lengths = [len(example["input_ids"]) for example in examples if "input_ids" in example]
    return [f"{min(lengths)} to {max(lengths)} tokens"] if lengths else []


def finished_batches(
    examples: list[dict[str, Any]], config: Any, generate: Callable[[Batch], Tensor] | None = None
) -> list[Batch]:
    """Batches of encoded examples, complete for the model's forward; see `load_data`."""
    batches = make_batches(examples, config)
    if adapter_of(config).modality in WRITES:
        batches = [with_targets(batch, config, generate) for batch in batches]
    return batches


_PROBE_SEED = 20_200_629  # no calibration seed that anybody would choose


def calibration_data(
    source: Source,
    model: PreTrainedModel,
    choice: CalibrationChoice,
    *,
    enough: bool = False,
    writes: bool = True,
    apart: bool = True,
) -> Data:
    """Batches for a model, its inputs alone; see `load_data`.

    Raises:
        HeadsError: the choice is `none`, or see `load_data`.
    """
    if choice.source == NONE:
        raise HeadsError("inputs are needed: name data that `datasets` loads, or `random` for made ones")
    generate = _writer(model)
    return load_data(choice, model, source.folder, generate=generate, enough=enough, writes=writes, apart=apart)


_SPOKEN = 32  # tokens that are written for a sound


def continue_texts(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What a model makes of a batch of sources, greedily, start token included: (batch, length)."""
    longest = positions_of(model.config)
    length = batch["input_ids"].shape[1] + 8 if "input_ids" in batch else _SPOKEN
    length = min(length, longest - 1) if longest else length
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    return model.generate(**inputs, do_sample=False, num_beams=1, max_length=None, max_new_tokens=length).cpu()  # type: ignore[operator]


def labelled_batches(source: Source, model: PreTrainedModel, choice: CalibrationChoice) -> list[Batch]:
    """Batches with labels for a model's own loss.

    Raises:
        HeadsError: see `load_labelled`; or the data is none that could have labels.
    """
    if choice.source in (RANDOM, NONE):
        raise HeadsError("labels are needed: name labelled data with --calibrate SRC, or take a rule without labels")
    return load_labelled(choice, model, source.folder)


def probes(source: Source, model: PreTrainedModel) -> list[Batch]:
    """The inputs that every conversion's drift is measured on: short, made from nothing, the same for ever."""
    examples = probe_examples(model.config, source.folder, HELD_OUT, _PROBE_SEED)
    return finished_batches(examples, model.config, _writer(model))


def probes_by_length(source: Source, model: PreTrainedModel) -> dict[int, list[Batch]]:
    """The same of 128 and 512 tokens, as far as the model goes: pairs where its class takes them, else half of them."""
    pairs = pairing_of(model, None).usual or None
    found = made_by_length(model.config, source.folder, pairs)
    return {length: finished_batches(examples, model.config, _writer(model)) for length, examples in found.items()}


def made_by_length(config: Any, folder: Path | str | None, pairs: bool | None) -> dict[int, list[dict[str, Any]]]:
    """Made texts of 128 and 512 tokens, as far as the model goes; none of images.

    Of an encoder-decoder 128 tokens alone, since the model has to write the targets token by token.
    """
    modality = adapter_of(config).modality
    counts = {"text": {128: 8, 512: 4}, "text-to-text": {128: 4}}.get(modality, {})
    made = {length: made_of_length(config, folder, length, n, _PROBE_SEED, pairs) for length, n in counts.items()}
    return {length: examples for length, examples in made.items() if examples}


def _writer(model: PreTrainedModel) -> Callable[[Batch], Tensor] | None:
    return partial(continue_texts, model) if hasattr(model, "generate") else None
