"""What people do with checkpoints, done with converted ones: each tool gives what torch and the model alone give.

That Trainer, generate, Auto classes, sharding, pickles and bfloat16 work is shown elsewhere (examples,
contract, modeling/test_automodel.py).
"""

from __future__ import annotations

import copy
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    pipeline,
)

import hf_heads
from hf_heads import CollabSpec, HeadsSpec, LowRankSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.gauge import INERTIA
from tests.support.files import save_checkpoint
from tests.support.matrix import each, only
from tests.support.tokenizers import save_image_processor, save_tokenizer
from tests.support.twins import HEADS, TWINS, WIDTH, bert_config, logits, randomize

# What torch's compiler, exporter and quantizer say of themselves: nothing that a caller could do otherwise.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".torch.jit.script_method. is deprecated",
        ".isinstance.treespec, LeafSpec.. is deprecated",
        "torch.ao.quantization is deprecated",
        "torch.quantize_per_tensor, torch.quantize_per_channel and other",
        "# The axis name. length will not be used",  # for the second input, whose length is the first one's
    )
]

METHODS: dict[str, HeadsSpec] = {
    "collab": CollabSpec(rank=10),
    "low-rank": LowRankSpec(rank=12),
    "mhe": MheSpec(groups=2),
    "mgk": MgkSpec(merge=2, queries="shared"),
    "pruned": PrunedSpec(keep=0.6, score="weights"),
}
# More of a method's settings, where they take other ways through the code.
SETTINGS: dict[str, HeadsSpec] = {
    **METHODS,
    "collab-tucker": CollabSpec(rank=10, form="tucker"),
    "mhe-add": MheSpec(variant="add"),
    "smgk": MgkSpec(mixture="smgk", shift=0.5, priors="fixed"),
    "mgk-em": MgkSpec(shift=0.5, priors="em"),
    "mgk-linear": MgkSpec(kernel="linear", shift=0.5),
}
LONGEST = 160  # on both sides of the length from which fused attention is faster


# What takes seconds each: the method whose attention is written anew. That of the others is the same with narrower
# queries and keys, or with fewer heads.
SECONDS_EACH = only("collab", spec=SETTINGS)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What was compiled before counts against torch's limit of recompilations, since all models share their code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small_bert(spec: HeadsSpec, native: type[PreTrainedModel] = BertForMaskedLM, layers: int = 2) -> PreTrainedModel:
    config = bert_config(num_labels=3)
    config.max_position_embeddings, config.num_hidden_layers = LONGEST, layers
    model = native(config)
    randomize(model)
    return hf_heads.convert(model.eval(), spec, calibration=[TWINS["bert"].inputs()])[0]


def texts(batch: int, length: int) -> dict[str, Tensor]:
    """Random tokens; the second text, if there is one, is shorter."""
    ids = torch.randint(1, 98, (batch, length), generator=torch.Generator().manual_seed(batch * length))
    mask = torch.ones_like(ids)
    mask[1:2, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def unpadded(output: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return output[inputs["attention_mask"].bool()]


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


# Compilers and exporters.


@pytest.mark.full
@pytest.mark.parametrize("spec", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.usefixtures("fresh_compiler")
def test_torch_compile_takes_the_whole_model_in_one_graph_and_trains(spec: HeadsSpec):
    model = small_bert(spec, layers=1).train()
    nn_dropout_off(model)
    twin = copy.deepcopy(model)
    # Inductor's graphs without its code generation; plain aot_eager trips over the layout of elu's gradient.
    for one in (model, torch.compile(twin, backend="aot_eager_decomp_partition", fullgraph=True)):
        one(**texts(3, 9))[0].square().mean().backward()
    found = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-6), name
    others = dict(twin.named_buffers())  # priors that move are sums, which a compiler may round otherwise
    assert all(torch.allclose(one, others[name], rtol=1e-6, atol=0) for name, one in model.named_buffers())


def nn_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_outputs():
    model = small_bert(METHODS["collab"], BertModel, layers=1)
    inputs = texts(2, 9)
    found = logits(torch.compile(model, fullgraph=True), inputs)
    assert largest(found - logits(model, inputs)) < 1e-5


@only("collab", "mgk-em", spec=SETTINGS)  # priors that move while they are used
def test_an_exported_program_takes_any_batch_and_any_length(spec: HeadsSpec):
    model = small_bert(spec, layers=1)
    example = texts(3, 9)
    sizes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in example}
    exported = torch.export.export(model, (), kwargs=example, dynamic_shapes=sizes, strict=False).module()
    for batch, length in ((5, 13), (2, 150)):
        inputs = texts(batch, length)
        with torch.no_grad():
            found = unpadded(exported(**inputs)[0], inputs)
        assert largest(found - logits(model, inputs)) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("spec", SETTINGS.values(), ids=SETTINGS)
def test_onnx_runtime_gives_torchs_outputs_for_any_batch_and_any_length(spec: HeadsSpec, tmp_path: Path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="torch.onnx.export writes with it")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    model = small_bert(spec, layers=1)
    example = texts(3, 9)
    torch.onnx.export(
        model,
        (),
        str(tmp_path / "model.onnx"),
        kwargs=example,
        dynamo=True,
        dynamic_shapes={name: {0: "batch", 1: "length"} for name in example},
        input_names=list(example),
        output_names=["logits"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [["batch", "length"]] * 2
    for batch, length in ((5, 13), (1, 150)):
        inputs = texts(batch, length)
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        assert largest(unpadded(torch.from_numpy(found), inputs) - logits(model, inputs)) < 1e-4


# Training.


@only("collab", "mhe", "mgk-em", "mgk-linear", spec=SETTINGS)
def test_gradient_checkpointing_changes_no_gradient_and_no_state(spec: HeadsSpec):
    found = []
    for checkpointing in (False, True):
        model = small_bert(spec).train()
        nn_dropout_off(model)
        model.config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        model(**texts(3, 9))[0].square().mean().backward()
        found.append(
            {
                **{name: one.grad for name, one in model.named_parameters() if one.grad is not None},
                **dict(model.named_buffers()),
            }
        )
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(tensor, checkpointed[name]) for name, tensor in plain.items())


# The names that docs/ecosystem.md gives for PEFT; the host's own are those of BERT, ViT and Marian.
LORA = {
    "collab": ["shared_query", "shared_key", "content_bias"],
    "low-rank": ["narrow_query", "narrow_key"],
    "mhe": ["shared_query", "shared_key", "shared_value"],
    "mgk": ["component_query", "component_key", "component_value"],
}
HOSTS = {
    "bert": (["query", "key", "value"], "value"),
    "vit": (["q_proj", "k_proj", "v_proj"], "v_proj"),
    "marian": (["q_proj", "k_proj", "v_proj"], "v_proj"),
}


def test_the_documents_name_what_lora_is_tried_on():
    text = " ".join(Path("docs/ecosystem.md").read_text(encoding="utf-8").split())
    for names in LORA.values():
        assert re.search(r"\[" + ", ".join(f'"{name}"' for name in names) + r"\]", text), names


def check_lora(
    model: PreTrainedModel, inputs: dict[str, Tensor], config: Any, inside: list[str], folder: Path, rate: float = 0.5
) -> None:
    """LoRA on a model: it reaches every block, training moves it alone, it is saved, loaded and merged exactly."""
    peft = pytest.importorskip("peft", reason="LoRA is PEFT's")
    blocks = len(find_blocks(model))
    model.save_pretrained(folder / "base")
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    trainable = [name for name, one in wrapped.named_parameters() if one.requires_grad]
    assert all("lora_" in name for name in trainable)
    for name in inside:
        assert sum(f".{name}." in f"{one}." for one in trainable) == 2 * blocks, (name, trainable)  # A and B of each
    optimizer = torch.optim.SGD([one for one in wrapped.parameters() if one.requires_grad], lr=rate)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(**inputs)[0].square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in wrapped.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all("lora_" in name for name in moved)
    wanted = logits(wrapped, inputs)
    assert largest(wanted - logits(model, inputs)) > 1e-4
    wrapped.save_pretrained(folder / "adapter")
    base = type(model).from_pretrained(folder / "base", attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert largest(logits(again, inputs) - wanted) < 1e-5
    merged = again.merge_and_unload()
    assert type(merged) is type(model)
    assert largest(logits(merged, inputs) - wanted) < 1e-4


@each(host=HOSTS.keys(), method=METHODS.keys())
def test_lora_on_the_readmes_names(host: str, method: str, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="LoRA is PEFT's")
    own, value = HOSTS[host]
    names = LORA.get(method, own)
    if method in ("collab", "low-rank"):
        names = [*names, value]
    model = hf_heads.convert(TWINS[host].model(), METHODS[method], calibration=[TWINS[host].inputs()])[0]
    config = peft.LoraConfig(target_modules=names, r=2)
    check_lora(model, TWINS[host].inputs(), config, names, tmp_path)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (CollabSpec(rank=10), ["mixing"]),
        (MheSpec(groups=2), ["query_embedding", "key_embedding", "value_embedding"]),
    ],
    ids=["collab", "mhe"],
)
def test_lora_on_mixing_vectors_and_embeddings(spec: HeadsSpec, names: list[str], tmp_path: Path):
    peft = pytest.importorskip("peft", minversion="0.17", reason="target_parameters are PEFT's")
    model = hf_heads.convert(TWINS["bert"].model(), spec, calibration="none")[0]
    config = peft.LoraConfig(target_parameters=names, target_modules=[], r=2)
    # What heads share is stored larger than it acts: its gradient and its step are smaller by as much each.
    check_lora(model, TWINS["bert"].inputs(), config, [], tmp_path, rate=0.5 * INERTIA**2)


# Quantization.


@only("collab", "mhe", "mgk", "mgk-linear", spec=SETTINGS)
def test_dynamic_int8_keeps_the_outputs_and_a_fraction_of_the_size(spec: HeadsSpec):
    model = small_bert(spec)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    inputs = texts(3, 9)
    cosine = torch.cosine_similarity(logits(quantized, inputs), logits(model, inputs), dim=-1)
    assert cosine.mean() > 0.99
    assert bytes_of(quantized) < 0.85 * bytes_of(model)  # tiny tensors have large headers, and embeddings stay


def bytes_of(module: nn.Module) -> int:
    held = io.BytesIO()
    torch.save(module.state_dict(), held)
    return held.tell()


# Pipelines and sentence-transformers.


@pytest.fixture
def lossless() -> HeadsSpec:
    """Settings that lose nothing: a pipeline must give what it gives for the original."""
    return CollabSpec(rank=WIDTH)


def saved(model: PreTrainedModel, spec: HeadsSpec, folder: Path, save: Callable[[Path], None]) -> tuple[Path, Path]:
    """Folders of a model and of the same converted, with tokenizer or image processor."""
    for name, one in (("original", model), ("converted", hf_heads.convert(model, spec, calibration="none")[0])):
        save_checkpoint(one, folder / name, save)
    return folder / "original", folder / "converted"


def test_pipelines_on_texts_give_what_they_give_for_the_original(lossless: HeadsSpec, tmp_path: Path):
    model = BertForSequenceClassification(bert_config(num_labels=3))
    randomize(model)
    folders = saved(model.eval(), lossless, tmp_path, save_tokenizer)
    sentences = ["word1 word2 word3", "word4"]
    wanted, found = (pipeline("text-classification", str(one), top_k=None)(sentences) for one in folders)
    for ours, theirs in zip(found, wanted, strict=True):
        scores = {row["label"]: row["score"] for row in theirs}
        assert {row["label"]: row["score"] for row in ours} == pytest.approx(scores, abs=1e-5)
    wanted, found = (pipeline("feature-extraction", str(one), return_tensors=True)(sentences) for one in folders)
    assert all(largest(a - b) < 1e-4 for a, b in zip(found, wanted, strict=True))


def test_image_classification_pipeline_gives_what_it_gives_for_the_original(lossless: HeadsSpec, tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="the pipeline reads images with pillow")
    folders = saved(TWINS["vit"].model(), lossless, tmp_path, save_image_processor)
    picture = image.effect_noise((16, 16), 64).convert("RGB")
    wanted, found = (pipeline("image-classification", str(one))(picture) for one in folders)
    assert [row["label"] for row in found] == [row["label"] for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)


def test_transformers_5_has_no_translation_pipeline_for_anybody():
    with pytest.raises(KeyError, match="translation"):
        pipeline("translation", model=TWINS["marian"].model())


def test_sentence_transformers_saves_and_loads_to_the_same_embeddings(tmp_path: Path):
    library = pytest.importorskip("sentence_transformers", reason="saves and loads by itself")
    save_checkpoint(small_bert(METHODS["mhe"], BertModel), tmp_path / "converted")
    embedder = library.SentenceTransformer(str(tmp_path / "converted"), device="cpu")
    sentences = ["word1 word2 word3", "word4"]
    wanted = embedder.encode(sentences)
    embedder.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert type(again[0].auto_model) is type(AutoModel.from_pretrained(tmp_path / "converted"))
    assert abs(again.encode(sentences) - wanted).max() < 1e-6


def test_a_merged_lora_checkpoint_is_an_ordinary_one(tmp_path: Path):
    peft = pytest.importorskip("peft", reason="LoRA is PEFT's")
    model = small_bert(METHODS["low-rank"], BertForSequenceClassification)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=LORA["low-rank"], r=2, init_lora_weights=False))
    wanted = logits(wrapped.eval(), texts(3, 9))
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert loaded.config.block_specs() and largest(logits(loaded, texts(3, 9)) - wanted) < 1e-4


def test_settings_name_every_method():
    assert {spec.method for spec in METHODS.values()} == set(hf_heads.methods)
    assert METHODS["pruned"].keep < 1 < HEADS
