"""Makes of transformers' test of a native model the same test of our derived classes."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from transformers import Cache, EncoderDecoderCache, PreTrainedConfig

import hf_heads
from hf_heads import HeadsSpec, models
from hf_heads.core.dense import AttentionShape

# The module of the checkout and the test in it. A decoder that stands alone has a test of its own.
HOSTS = {
    "bert": ("models.bert.test_modeling_bert", "BertModelTest"),
    "vit": ("models.vit.test_modeling_vit", "ViTModelTest"),
    "marian": ("models.marian.test_modeling_marian", "MarianModelTest"),
    "marian-decoder": ("models.marian.test_modeling_marian", "MarianStandaloneDecoderModelTest"),
}
COMMON = "tests.test_modeling_common"
ATTENTION_CHECKS = ("_check_attentions_for_generate", "_check_encoder_attention_for_generate")
CONFIG_MAKERS = ("get_config", "prepare_config_and_inputs")  # of a model tester; the first one that there is


def open_checkout(folder: Path) -> None:
    """Make the modules of transformers' tests importable as `tests.models...`, the name they have for one another."""
    package = importlib.import_module("tests")
    package.__path__ = [*package.__path__, str(folder)]
    # Tests of pipelines load from the hub, and their module a second transformers, the checkout's.
    pipelines = ModuleType("tests.test_pipeline_mixin")
    pipelines.PipelineTesterMixin = type("PipelineTesterMixin", (), {})  # type: ignore[attr-defined]
    sys.modules[pipelines.__name__] = pipelines


def native_test(host: str) -> Any:
    """Transformers' own test of a host."""
    module, name = HOSTS[host]
    return getattr(importlib.import_module(f"tests.{module}"), name)


def derived_test(
    host: str,
    method: str,
    spec: HeadsSpec,
    dealt: Callable[[int], bool],
    expected: Callable[[str, str, str], str | None],
) -> Any:
    """A host's test on classes of ours whose attention is all of one method.

    The classes of the host's test, and all that is named in its module, become ours; configs get a `heads` section.

    Args:
        dealt: whether the test of a number runs by default; the others are marked `full`.
        expected: the reason why a test (of a host and method) is expected to fail or to be skipped, if it is.
    """
    native = native_test(host)
    namespace: dict[str, Any] = {
        "setUp": _set_up(native, spec),
        "all_model_classes": tuple(_ours(one) for one in native.all_model_classes),
        "subTest": _sub_test,
        "_check_past_key_values_for_generate": check_cache,
        **{name: _of_kept_heads(getattr(native, name)) for name in ATTENTION_CHECKS if hasattr(native, name)},
        "__module__": __name__,
        "__doc__": None,
    }
    for number, name in enumerate(unittest.TestLoader().getTestCaseNames(native)):
        test = _compared(native, name)
        if reason := expected(host, method, name):
            test = pytest.mark.xfail(reason=reason, strict=True)(test)
        namespace[name] = test if dealt(number) else pytest.mark.full(test)
    return type(f"Test_{host}_{method}".replace("-", "_"), (native,), namespace)


@contextmanager
def _sub_test(self: Any, *_: Any, **__: Any) -> Iterator[None]:
    """One of a test's classes; what fails ends the test, so that it is held against the native class's."""
    with suppress(unittest.SkipTest):
        yield


def check_cache(self: Any, batch_size: int, past_key_values: Any, seq_length: int | None, config: Any) -> None:
    """What caches hold: as many numbers per token as the method's formula says, where the host has equal heads."""
    if isinstance(past_key_values, EncoderDecoderCache):
        check_cache(self, batch_size, past_key_values.self_attention_cache, seq_length, config)
        check_cache(self, batch_size, past_key_values.cross_attention_cache, None, config)
        return
    self.assertIsInstance(past_key_values, Cache)
    self.assertEqual(len(past_key_values), config.get_text_config(decoder=True).num_hidden_layers)
    width, heads = config.hidden_size, config.num_attention_heads
    shape = AttentionShape(heads, width, width, width // heads, width // heads, width)
    (numbers,) = {spec.cache_per_token(shape) for spec in config.block_specs().values()}
    for layer in past_key_values.layers:
        self.assertEqual(layer.keys.shape[::2][:2], layer.values.shape[::2][:2])
        self.assertEqual(layer.keys.shape[0], batch_size)
        if seq_length is not None:
            self.assertEqual(layer.keys.shape[2], seq_length)
        self.assertEqual(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel(), numbers)


def _of_kept_heads(check: Callable[..., None]) -> Callable[..., None]:
    """A check of attention maps that counts the heads which blocks have, not those that the host's config names."""

    def kept(value: Any) -> Any:
        if not isinstance(value, PreTrainedConfig):
            return value
        (heads,) = {spec.heads for spec in value.block_specs().values()}
        value = copy.deepcopy(value)
        value.num_attention_heads = heads
        return value

    return lambda self, *args, **kwargs: check(self, *map(kept, args), **{key: kept(kwargs[key]) for key in kwargs})


def _ours(native: type) -> Any:
    return getattr(models, f"Heads{native.__name__}")


def _set_up(native: Any, spec: HeadsSpec) -> Callable[[Any], None]:
    module = sys.modules[native.__module__]
    host = native.all_model_classes[0].config_class
    renamed = {
        name: _ours(value)
        for name, value in vars(module).items()
        if value is host or (isinstance(value, type) and getattr(value, "config_class", None) is host)
    }

    def set_up(self: Any) -> None:
        patches = [mock.patch.dict(vars(module), renamed)]
        if hasattr(common := sys.modules[COMMON], "UNSHIFTED_LM_HEADS"):  # by name as well
            names = set(common.UNSHIFTED_LM_HEADS)
            patches.append(mock.patch.object(common, "UNSHIFTED_LM_HEADS", names | {f"Heads{one}" for one in names}))
        for user in (module, common):
            if hasattr(user, "get_values"):
                patches.append(mock.patch.object(user, "get_values", functools.partial(_values, user.get_values)))
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)
        native.setUp(self)
        maker = next(name for name in CONFIG_MAKERS if hasattr(self.model_tester, name))
        setattr(self.model_tester, maker, functools.partial(_with_heads, getattr(self.model_tester, maker), spec))

    return set_up


def _values(values: Callable[[Any], list[Any]], mapping: Any) -> list[Any]:
    """What an Auto class makes, by class or by name, ours among them: this is how the tests know a class's labels."""
    found = values(mapping)
    return [*found, *(f"Heads{one}" for one in found if isinstance(one, str))]


def _with_heads(make: Callable[..., Any], spec: HeadsSpec, *args: Any, **kwargs: Any) -> Any:
    made = make(*args, **kwargs)
    if isinstance(made, PreTrainedConfig):
        return hf_heads.heads_config(made, spec)
    return (hf_heads.heads_config(made[0], spec), *made[1:])


def _compared(native: Any, name: str) -> Callable[[Any], None]:
    """A test that is held against the native class's where it does not pass.

    What fails there in the same line is skipped; what is skipped here has to be skipped there as well.
    """
    test = getattr(native, name)

    @functools.wraps(test)
    def compared(self: Any) -> None:
        try:
            test(self)
        except unittest.SkipTest as skip:
            self.doCleanups()  # the names of the module are the host's again
            if not isinstance(_outcome(native, name), unittest.SkipTest):
                raise AssertionError(f"skipped, though the native class is not: {skip}") from skip
            raise
        except Exception as error:
            self.doCleanups()
            there = _outcome(native, name)
            if _place(there) == _place(error):
                self.skipTest(f"the native class fails alike: {type(there).__name__}: {there}"[:200])
            raise

    return compared


def _outcome(native: Any, name: str) -> Exception | None:
    """How a test of the native class ends."""
    case = native(name)
    try:
        case.setUp()
        getattr(case, name)()
    except Exception as error:
        return error
    finally:
        case.tearDown()
        case.doCleanups()
    return None


def _place(error: Exception | None) -> tuple[Any, ...] | None:
    """The kind of an error, and the innermost line of transformers' tests that it came through."""
    lines, trace = [], error.__traceback__ if error is not None else None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("tests.") and module != __name__:
            lines.append((module, trace.tb_lineno))
        trace = trace.tb_next
    return (type(error).__name__, *lines[-1]) if lines else None
