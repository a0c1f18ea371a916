"""What every method keeps on every architecture, for those who bring one of either.

`contract(twin)` takes a tiny model with random weights and inputs for it, and raises `AssertionError` with the name of
the check that it does not pass.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers import EncoderDecoderCache as Pair

from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.attention.hosts.table import adapter_of, reasons_against
from hf_heads.attention.module import HeadsAttention
from hf_heads.attention.spec import HeadsSpec
from hf_heads.core.batches import main_output, output_mask
from hf_heads.core.dense import AttentionShape
from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.inspection import inspect
from hf_heads.io.checkpoints.sources import resolve_source
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.jobs.conversion.checkpoint import convert_checkpoint
from hf_heads.jobs.conversion.convert import convert
from hf_heads.jobs.conversion.request import ConversionRequest
from hf_heads.jobs.evaluation.verify import verify
from hf_heads.methods.registry import get_method
from hf_heads.methods.settings.collab import CollabSpec
from hf_heads.methods.settings.low_rank import LowRankSpec
from hf_heads.methods.settings.mgk import MgkSpec
from hf_heads.methods.settings.mhe import MheSpec
from hf_heads.methods.settings.pruned import PrunedSpec
from hf_heads.modeling.auto_classes import auto_mappings, native_class, served_classes
from hf_heads.modeling.blocks import beside, block_shape
from hf_heads.modeling.classes import model_class

EXACT = 2e-5  # largest difference of two ways to the same numbers in float32, as a share of the largest


@dataclass(frozen=True)
class Twin:
    """A tiny model of an architecture with random weights, and inputs for it.

    Attributes:
        name: for messages.
        model_type: of the architecture.
        make: gives the model; its weights are then made random.
        inputs: keyword arguments of its forward, with padding where the architecture knows any.
    """

    name: str
    model_type: str
    make: Callable[[], PreTrainedModel]
    inputs: Callable[[], dict[str, Tensor]]

    def model(self, implementation: str = "eager") -> PreTrainedModel:
        """The model with random weights, ready to run."""
        model = self.make()
        randomize(model)
        model.set_attn_implementation(implementation)
        return model.eval()


def randomize(model: PreTrainedModel, seed: int = 0) -> None:
    """Every parameter random, norms around one, so that nothing can be right because it is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # positions that are computed, and never saved
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if norm else 0.2) + float(norm))


def exact_settings(shape: AttentionShape) -> dict[str, HeadsSpec]:
    """Settings of every method that lose nothing."""
    stays, values = shape.turned or shape.kv_heads is not None, shape.memory_heads * shape.value_dim
    return {
        "collab": CollabSpec(rank=shape.heads * shape.head_dim),
        "low-rank": LowRankSpec(value_rank=values) if stays else LowRankSpec(rank=shape.heads * shape.head_dim),
        "mgk": MgkSpec(shift=0),
        "mhe": MheSpec(groups=shape.memory_heads),
        "pruned": PrunedSpec(keep=1.0),
    }


def lossy_settings(shape: AttentionShape) -> dict[str, HeadsSpec]:
    """Settings of every method that do lose something."""
    stays, values = shape.turned or shape.kv_heads is not None, shape.memory_heads * (shape.value_dim // 2)
    groups = 2 if shape.kv_heads is None else max(1, shape.kv_heads // 2)
    return {
        "collab": CollabSpec(rank=shape.heads * shape.head_dim // 3),
        "low-rank": LowRankSpec(value_rank=values) if stays else LowRankSpec(rank=shape.heads * (shape.head_dim // 2)),
        "mgk": MgkSpec(merge=2),
        "mhe": MheSpec(groups_qk=shape.memory_heads if shape.normed else groups, groups_v=groups),
        "pruned": PrunedSpec(keep=0.6, score="weights", repair=True),
    }


class Case:
    """A twin and a method with settings that lose something and settings that do not.

    Attributes:
        folder: where a check may write.
    """

    def __init__(self, twin: Twin, method: str, folder: Path) -> None:
        self.twin, self.method, self.folder = twin, method, folder
        shape = block_shape(find_blocks(twin.model())[0])
        self.exact, self.lossy = exact_settings(shape)[method], lossy_settings(shape)[method]

    @cached_property
    def implementations(self) -> tuple[str, ...]:
        """Those that the host knows."""
        return ("eager", "sdpa") if self.twin.make()._supports_sdpa else ("eager",)

    @cached_property
    def _converted(self) -> PreTrainedModel:
        return convert(self.twin.model(), self.lossy, calibration=[self.twin.inputs()])[0]

    def converted(self, implementation: str = "eager") -> PreTrainedModel:
        """A converted model of one's own; something is lost in it."""
        model = copy.deepcopy(self._converted)
        model.set_attn_implementation(implementation)
        return model

    def output(self, model: PreTrainedModel) -> Tensor:
        """A model's main output for the twin's inputs, where there is no padding."""
        return main_rows(model, self.twin.inputs())


def main_rows(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """A model's main output where there is no padding."""
    with torch.no_grad():
        found, _ = main_output(model, inputs)
    mask = output_mask(inputs, found)
    return found if mask is None else found[mask.bool()]


def limit(wanted: Tensor) -> float:
    """By how much another way to the same numbers may differ from these."""
    return EXACT * max(1.0, float(wanted.abs().max()))


def attention_modules(model: PreTrainedModel) -> list[HeadsAttention]:
    """The blocks of a model all of whose blocks are converted."""
    modules = [block.module for block in find_blocks(model)]
    found = [module for module in modules if isinstance(module, HeadsAttention)]
    assert len(found) == len(modules), "a block is not converted"
    return found


def check_exact(case: Case) -> None:
    """Settings that lose nothing give the host's outputs, in every implementation, with data and without."""
    for implementation, batches in zip(case.implementations * 2, (None, [case.twin.inputs()]), strict=False):
        model = case.twin.model(implementation)
        converted, report = convert(model, case.exact, calibration=batches)
        attention_modules(converted)
        wanted = case.output(model)
        difference = float((case.output(converted) - wanted).abs().max())
        assert difference < limit(wanted), f"{implementation}: an output differs by {difference:.1e}"
        assert all(block.error is not None and block.error < EXACT for block in report.blocks)


def check_lossy(case: Case) -> None:
    """Settings that lose something change the outputs, and all implementations agree about them."""
    eager, sdpa = (case.output(case.converted(one)) for one in (case.implementations * 2)[:2])
    assert (eager - sdpa).abs().max() < limit(eager), "eager and sdpa differ"
    assert (eager - case.output(case.twin.model())).abs().max() > 1e-4, "nothing was lost"


def check_loading(case: Case) -> None:
    """Every Auto class that serves the architecture saves and loads to the bit."""
    adapter = adapter_of(case.twin.model().config)
    config = case.twin.make().config
    for auto, natives in served_classes(adapter).items():
        for name in natives:
            native = native_class(adapter, name)
            model = native(copy.deepcopy(config))
            randomize(model)
            converted = convert(model.eval(), case.lossy, calibration="none")[0]
            folder = case.folder / name
            converted.save_pretrained(folder)
            loaded, info = auto_mappings()[auto].from_pretrained(folder, output_loading_info=True)
            assert type(loaded) is model_class(native), f"{auto} gives a {type(loaded).__name__}, not Heads{name}"
            wrong = {kind: keys for kind, keys in info.items() if kind.endswith("keys") and keys}
            assert not wrong, f"{auto}: {wrong}"
            state = loaded.state_dict()
            for key, tensor in converted.state_dict().items():
                assert torch.equal(tensor, state[key]), f"{auto}: {key} changed"


def check_maps(case: Case) -> None:
    """Attention weights of all blocks come out, and their rows sum to one."""
    model = case.converted()
    seen: list[Tensor] = []
    for module in attention_modules(model):
        module.register_forward_hook(lambda one, _, output: seen.append(output[one.site.weights]))
    case.output(model)
    assert len(seen) >= len(attention_modules(model))
    for weights in seen:
        assert not weights.numel() or (weights.sum(-1) - 1).abs().max() < EXACT, "a row does not sum to one"


def check_generation(case: Case) -> None:
    """A model that generates does so alike with every cache and without, and caches what its settings say."""
    model = case.converted(case.implementations[-1])
    if not model.can_generate():
        return
    generate: Any = model.generate
    inputs = {name: value for name, value in case.twin.inputs().items() if not name.startswith("decoder")}
    if not model.config.is_encoder_decoder:
        inputs = {"input_ids": inputs["input_ids"][:, :4]}
    settings = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 3, "pad_token_id": 0}
    for beams in (1, 3):
        wanted = generate(**inputs, **settings, num_beams=beams, use_cache=False)
        for more in ({}, {"cache_implementation": "static", "disable_compile": True}):
            with _caches(model) as used:
                found = generate(**inputs, **settings, num_beams=beams, **more)
            assert torch.equal(found, wanted), f"another text of {beams} beams with {more}"
            _check_cache(model, used[-1])


@contextmanager
def _caches(model: PreTrainedModel) -> Iterator[list[Cache | Pair]]:
    """The caches that the attention of a model is handed meanwhile."""
    used: list[Cache | Pair] = []

    def note(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        used.extend(one for one in (*args, *given.values()) if isinstance(one, Cache | Pair))

    hooks = [one.register_forward_pre_hook(note, with_kwargs=True) for one in attention_modules(model)]
    try:
        yield used
    finally:
        for hook in hooks:
            hook.remove()


def _check_cache(model: PreTrainedModel, cache: Cache | Pair) -> None:
    """What a cache holds for a token is what the settings say."""
    pair = isinstance(cache, Pair)
    for block in find_blocks(model):
        module = block.module
        if not isinstance(module, HeadsAttention) or (pair and block.name.startswith("encoder.")):
            continue
        kind: Any = cache
        if isinstance(cache, Pair):
            kind = cache.cross_attention_cache if block.kind == "cross" else cache.self_attention_cache
        layer = kind.layers[getattr(module, module.site.index)]
        held = sum(tensor.shape[1] * tensor.shape[3] for tensor in (layer.keys, layer.values))
        assert held == module.spec.cache_per_token(module.shape), f"{block.name} caches {held} numbers for a token"


def check_training(case: Case) -> None:
    """Every parameter of a converted block gets a finite gradient, in every implementation."""
    for implementation in case.implementations:
        model = case.converted(implementation).train()
        main_output(model, case.twin.inputs())[0].square().mean().backward()
        for module in attention_modules(model):
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None, f"{name} gets none"
                assert torch.isfinite(parameter.grad).all(), f"{name} gets one that is not finite"


def check_sizes(case: Case) -> None:
    """The parameters of a converted block are as many as its settings say, and the source stays as it was."""
    model = case.twin.model()
    before = copy.deepcopy(model.state_dict())
    converted, report = convert(model, case.lossy, calibration="none")
    for block, row in zip(find_blocks(converted), report.blocks, strict=True):
        owned = {id(p): p.numel() for part in (block.module, block.output) for p in part.parameters()}
        kept = sum(block.module.get_parameter(name).numel() for name in beside(block))
        assert sum(owned.values()) - kept == row.parameters, f"{block.name}: not {row.parameters} parameters"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def check_precision(case: Case) -> None:
    """In bfloat16, and started from a config alone, outputs are finite."""
    model = case.converted(case.implementations[-1])
    fresh = type(model)._from_config(copy.deepcopy(model.config)).eval()
    found = case.output(fresh)
    assert torch.isfinite(found).all() and found.std(0).max() > 1e-5, "a fresh model gives constants"
    half = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in case.twin.inputs().items()
    }
    assert torch.isfinite(main_rows(model.bfloat16(), half)).all(), "bfloat16 gives infinite numbers"


def check_folders(case: Case) -> None:
    """A folder converts on made data to the same bytes twice, verifies, and can be inspected."""
    source, outputs = case.folder / "source", [case.folder / "one", case.folder / "two"]
    case.twin.model().save_pretrained(source)
    for output in outputs:
        data = CalibrationChoice(samples=16)
        convert_checkpoint(ConversionRequest(str(source), case.lossy, calibration=data), output)
    for name in ("model.safetensors", "config.json"):
        one, two = ((output / name).read_bytes() for output in outputs)
        assert one == two, f"{name} differs from run to run"
    verdict = verify(outputs[0])
    assert not verdict.failures, verdict.failures
    rows = inspect(resolve_source(str(outputs[0])))["blocks"]
    assert all(row["method"] == case.method for row in rows)


def possible(twin: Twin, method: str) -> bool:
    """Whether a method can be used on a twin's architecture; if not, that it is refused with a reason."""
    adapter, found = adapter_of(twin.model().config), get_method(method)
    reason = reasons_against(adapter, method, found.handles) or found.reason_against.get(adapter.model_type)
    if reason is None:
        return True
    model = twin.model()
    try:
        convert(model, exact_settings(block_shape(find_blocks(model)[0]))[method], calibration="none")
    except HeadsError as error:
        assert reason in str(error), f"{method} is refused for another reason: {error}"
        return False
    raise AssertionError(f"{method} is not refused: {reason}")


CHECKS: dict[str, Callable[[Case], None]] = {
    "exact": check_exact,
    "lossy": check_lossy,
    "loading": check_loading,
    "maps": check_maps,
    "generation": check_generation,
    "training": check_training,
    "sizes": check_sizes,
    "precision": check_precision,
    "folders": check_folders,
}


def contract(twin: Twin, methods: Iterable[str] | None = None, checks: Iterable[str] | None = None) -> None:
    """Check that methods keep on an architecture what they keep on all.

    Args:
        twin: a tiny model of it; heads that are a multiple of 4, of width 8 or so.
        methods: by name; all when None.
        checks: by name, see `CHECKS`; all when None.

    Raises:
        AssertionError: names the method and the check that does not hold.
    """
    for method in methods or exact_settings(AttentionShape(1, 1, 1, 1, 1, 1)):
        if not possible(twin, method):
            continue
        for name in checks or CHECKS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    CHECKS[name](Case(twin, method, Path(folder)))
                except (AssertionError, HeadsError) as error:
                    raise AssertionError(f"{twin.name}, {method}, {name}: {error}") from error
