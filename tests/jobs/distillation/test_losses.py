"""The losses, the order of the data and the optimizer of healing, against their formulas."""

from __future__ import annotations

import pytest
import torch

import hf_heads
from hf_heads import CollabSpec, MgkSpec, MheSpec, PrunedSpec
from hf_heads.attention.hosts.blocks import find_blocks
from hf_heads.core.errors import HeadsError
from hf_heads.jobs.distillation.losses import Matching
from hf_heads.jobs.distillation.muon import Muon, orthogonalized
from hf_heads.jobs.distillation.schedule import LengthSampler
from hf_heads.jobs.distillation.settings import DistillSettings
from hf_heads.jobs.distillation.trainer import trained_parameters
from tests.support.twins import TWINS


def mean_over_examples(values: torch.Tensor, mask: torch.Tensor) -> float:
    """Each example's mean over its tokens, one by one, then their mean."""
    return sum(float(row[keep.bool()].mean()) for row, keep in zip(values, mask, strict=True)) / len(values)


def variance(states: torch.Tensor, mask: torch.Tensor) -> float:
    rows = states[mask.bool()].double()
    return float((rows - rows.mean(0)).square().sum(-1).mean())


def test_losses_are_their_formulas():
    twin = TWINS["bert"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(teacher, CollabSpec(rank=4), calibration="none")
    mask = inputs["attention_mask"]
    with torch.no_grad():
        here, there = (
            model(**inputs, output_hidden_states=True, output_attentions=True) for model in (student, teacher)
        )
    wanted = {
        "output": mean_over_examples(
            (there.logits.softmax(-1) * (there.logits.log_softmax(-1) - here.logits.log_softmax(-1))).sum(-1), mask
        ),
        "hidden": sum(
            mean_over_examples((one - other).square().sum(-1), mask) / variance(other, mask)
            for one, other in zip(here.hidden_states[1:], there.hidden_states[1:], strict=True)
        )
        / 2,
        "attention": sum(
            mean_over_examples((other * (other / one).log()).nan_to_num(0).sum(-1).mean(1), mask)
            for one, other in zip(here.attentions, there.attentions, strict=True)
        )
        / 2,
    }
    for name, value in wanted.items():
        matching = Matching(student, teacher, {name: 2.0}, [inputs])
        loss, _ = matching(student, inputs)
        matching.close()
        assert loss.item() == pytest.approx(2 * value, rel=1e-4), name


def test_block_loss_compares_what_the_output_projections_give():
    twin = TWINS["marian"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(teacher, MheSpec(), calibration="none")
    seen: dict[str, list[torch.Tensor]] = {}
    for model in (student, teacher):
        for block in find_blocks(model):
            block.output.register_forward_hook(
                lambda _, __, out, name=block.name: seen.setdefault(name, []).append(out)
            )
    with torch.no_grad():
        student(**inputs)
        teacher(**inputs)
    value = 0.0
    for name, (one, other) in seen.items():
        mask = inputs["attention_mask" if name.startswith("encoder") else "decoder_attention_mask"]
        value += mean_over_examples((one - other).square().sum(-1), mask) / variance(other, mask) / len(seen)
    matching = Matching(student, teacher, {"blocks": 1.0}, [inputs])
    assert matching(student, inputs)[0].item() == pytest.approx(value, rel=1e-4)


def test_pruned_maps_are_compared_with_the_heads_that_were_kept():
    twin = TWINS["vit"]
    teacher, inputs = twin.model(), twin.inputs()
    student, _ = hf_heads.convert(
        teacher, {"layers.0.*": PrunedSpec(kept=(1, 3)), "*": PrunedSpec(kept=(0, 1, 2, 3))}, calibration="none"
    )
    loss = Matching(student, teacher, {"attention": 1.0}, [inputs])(student, inputs)[0]
    # The first layer's inputs are the same, so its maps are; only later layers can differ.
    with torch.no_grad():
        here, there = (model(**inputs, output_attentions=True).attentions for model in (student, teacher))
    assert torch.allclose(here[0], there[0][:, [1, 3]], atol=1e-6)
    later = (there[1] * (there[1] / here[1]).log()).sum(-1).mean()
    assert loss.item() == pytest.approx(later.item() / 2, rel=1e-3)


def test_what_has_no_counterpart_is_refused():
    teacher = TWINS["bert"].model()
    inputs = TWINS["bert"].inputs()
    merged, _ = hf_heads.convert(teacher, MgkSpec(merge=2), calibration="none")
    with pytest.raises(HeadsError, match="none of the teacher's"):
        Matching(merged, teacher, {"attention": 1.0}, [inputs])
    with pytest.raises(HeadsError, match=r"no loss 'logits'\. Losses: output"):
        DistillSettings(losses={"logits": 1.0})
    with pytest.raises(HeadsError, match="models without a head"):
        Matching(merged, teacher, {"embedding": 1.0}, [inputs])


def test_only_converted_attention_is_trained_unless_all():
    student, _ = hf_heads.convert(TWINS["bert"].model(), MheSpec(), blocks="encoder.layer.1.*", calibration="none")
    names = {id(p): name for name, p in student.named_parameters()}
    chosen = {names[id(p)] for p in trained_parameters(student, "attention")}
    assert chosen and all(name.startswith("bert.encoder.layer.1.attention.") for name in chosen)
    assert any("output.dense.weight" in name for name in chosen)
    assert len(trained_parameters(student, "all")) == len(list(student.parameters()))


def test_order_depends_on_seed_and_epoch_alone_and_covers_all():
    lengths = [index % 7 + 1 for index in range(50)]
    sampler = LengthSampler(lengths, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [
        max(lengths[i] for i in first[b : b + 8]) - min(lengths[i] for i in first[b : b + 8]) for b in range(0, 48, 8)
    ]
    assert sum(spread) / len(spread) < 2.5  # of 6


def test_orthogonalized_has_equal_singular_values_and_the_same_directions():
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -1, 20))
    for one in (matrix, matrix.mT):
        values = torch.linalg.svdvals(orthogonalized(one))
        assert values.min() > 0.6 and values.max() < 1.3
        exact = torch.linalg.svd(one, full_matrices=False)
        assert torch.cosine_similarity(orthogonalized(one).flatten(), (exact[0] @ exact[2]).flatten(), 0) > 0.97


def test_adam_part_of_the_optimizer_is_torchs():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Muon([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    for _ in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7)
