"""What a model costs to run: multiply-adds, time, generated tokens and memory, on inputs made from nothing."""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.sites import WRITES
from hf_heads.attention.hosts.table import adapter_of, positions_of
from hf_heads.core.errors import HeadsError
from hf_heads.io.data.batching import make_batches
from hf_heads.io.data.made import probe_examples
from hf_heads.jobs.evaluation.record import Generation, Latency, Memory

NEW_TOKENS = 32  # what the generation is timed with, and what its source texts are long
_ROUNDS = 3  # the fewest that a median is taken of


# Inputs.


def image_length(model: PreTrainedModel) -> int | None:
    """The one length of the sequences in a model of images or sounds; None where texts are of any."""
    if adapter_of(model.config).modality in ("text", "text-to-text"):
        return None
    lengths: list[int] = []
    empty = _empty(model)
    find_blocks(empty)[-1].output.register_forward_hook(lambda _, __, output: lengths.append(output.shape[1]))
    with torch.no_grad():
        empty(**{name: value.to("meta") for name, value in made_inputs(model, 1, 1).items()})
    return lengths[0]


def _empty(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same config without memory for its weights."""
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config)).eval()
    empty.set_attn_implementation("eager")
    return empty


def longest_input(model: PreTrainedModel) -> int | None:
    """The most tokens that a text model takes; None where nothing limits them."""
    return positions_of(model.config)


def check_lengths(model: PreTrainedModel, lengths: Sequence[int], name: str) -> None:
    """Refuse lengths of texts that a model does not take.

    Raises:
        HeadsError: names the first that is too long.
    """
    limit = longest_input(model)
    if limit is not None and (wrong := [length for length in lengths if length > limit]):
        raise HeadsError(f"length {wrong[0]} exceeds the {limit} positions of {name}: choose shorter --lengths")


def made_inputs(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Arguments of a forward pass without padding: always the same random tokens (batch, length), pixels or sounds."""
    generator = torch.Generator().manual_seed(0)
    config, adapter = model.config, adapter_of(model.config)
    if adapter.modality not in ("text", "text-to-text"):
        (found,) = make_batches(probe_examples(config, None, batch, 0), config)
        if adapter.modality in WRITES:
            found = {**found, "decoder_input_ids": torch.full((batch, 1), config.decoder_start_token_id)}
        return dict(found)
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    if adapter.modality == "text-to-text":
        targets = torch.randint(
            getattr(config, "decoder_vocab_size", None) or config.vocab_size, (batch, length), generator=generator
        )
        return {"input_ids": ids, "decoder_input_ids": targets}
    return {"input_ids": ids}


# Multiply-adds.


def count_multiply_adds(model: PreTrainedModel, length: int) -> int:
    """Multiply-adds of the matrix products and convolutions of one forward pass of one example of so many tokens.

    Counted in eager attention, on a model of the same config without weights: every score is one, whatever a kernel
    would leave out, so that all models are counted the same way. Elementwise work is not counted.
    """
    empty = _empty(model)
    inputs = {name: value.to("meta") for name, value in made_inputs(model, 1, length).items()}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        empty(**inputs)
    return counter.get_total_flops() // 2


# Time.


def measure_latency(models: Sequence[PreTrainedModel], batch: int, length: int, seconds: float) -> list[Latency]:
    """Time a forward pass of several models, the original first, in the kernel that each is loaded with.

    Args:
        models: they take turns on the same inputs, so that whatever else the machine does slows them all alike.
        batch: examples at a time.
        length: tokens of each example.
        seconds: for all models together, about; every model runs at least three times beside a first for warmth.
    """
    runs = []
    for model in models:
        inputs = _on_device(model, made_inputs(model, batch, length))
        runs.append(_synchronized(model, partial(model, **inputs)))
    rounds = timed_rounds(runs, seconds)
    times = [statistics.median(found) for found in rounds]
    images = adapter_of(models[0].config).modality not in ("text", "text-to-text")
    return [
        Latency(
            batch,
            length,
            1000 * one,
            batch * length / one,
            times[0] / one,
            batch / one if images else None,
            *_middle_half(rounds[0], found),
        )
        for one, found in zip(times, rounds, strict=True)
    ]


def measure_generation(models: Sequence[PreTrainedModel], batch: int, seconds: float) -> list[Generation]:
    """Time greedy generation of a fixed number of tokens by text-to-text models, the original first; in turn, as above.

    The end of a text is forbidden, so that all models generate as many tokens, whatever they would say.
    """
    limit = min(longest_input(model) or NEW_TOKENS + 1 for model in models)
    count = min(NEW_TOKENS, limit - 1)
    runs = []
    for model in models:
        ids = made_inputs(model, batch, count)["input_ids"]
        inputs = _on_device(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        generate: Callable[..., object] = model.generate  # type: ignore[assignment]
        run = partial(
            generate,
            **inputs,
            do_sample=False,
            num_beams=1,
            min_new_tokens=count,
            max_length=None,  # else transformers warns where the model has one of its own
            max_new_tokens=count,
        )
        runs.append(_synchronized(model, run))
    rounds = timed_rounds(runs, seconds)
    times = [statistics.median(found) for found in rounds]
    return [
        Generation(batch, batch * count / one, times[0] / one, *_middle_half(rounds[0], found))
        for one, found in zip(times, rounds, strict=True)
    ]


def _middle_half(original: Sequence[float], model: Sequence[float]) -> tuple[float, float]:
    """Quartiles of how many times faster a model is than the original in the same round."""
    low, _, high = statistics.quantiles([one / other for one, other in zip(original, model, strict=True)], n=4)
    return low, high


def machine_load() -> float | None:
    """How many threads wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interleaved(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of every run, see `timed_rounds`."""
    return [statistics.median(found) for found in timed_rounds(runs, seconds)]


def timed_rounds(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Seconds of every run by round; they take turns until about so many seconds are over, and three times at least."""
    times: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for run in runs:
            run()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times[-1]) < _ROUNDS:
            for run, found in zip(runs, times, strict=True):
                started = time.perf_counter()
                run()
                found.append(time.perf_counter() - started)
    return times


def _on_device(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in inputs.items()}


def _synchronized(model: PreTrainedModel, run: Callable[[], object]) -> Callable[[], object]:
    """The run, and on a GPU the wait for its end."""
    if model.device.type != "cuda":
        return run

    def both() -> object:
        result = run()
        torch.cuda.synchronize(model.device)
        return result

    return both


# Memory.


def measure_memory(model: PreTrainedModel, batch: int, length: int) -> Memory:
    """The peak of a forward pass, in the kernel that the model is loaded with."""
    inputs = _on_device(model, made_inputs(model, batch, length))
    with torch.inference_mode():
        model(**inputs)  # what is made once and kept is no part of it
        return Memory(batch, length, peak_memory(lambda: model(**inputs), model.device))


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that a run holds at a time, above what there was before.

    On a CPU torch's profiler reports every allocation and every release of torch's allocator; what libraries below
    take for themselves is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()  # held, so that the output counts to the end
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))
