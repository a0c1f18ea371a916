"""What a language model writes itself is as probable as it says, and conversions take it where there is no data."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

import hf_heads
from hf_heads import HeadsError, LowRankSpec
from hf_heads.io.data import written
from hf_heads.io.data.calibration import Data, load_data
from hf_heads.io.data.choice import CalibrationChoice
from hf_heads.io.data.written import written_examples
from hf_heads.jobs.distillation.data import load_healing
from hf_heads.jobs.team import Team
from tests.contract.test_hosts import HOSTS
from tests.support.tokenizers import save_tokenizer
from tests.support.twins import randomize

RANDOM = CalibrationChoice(samples=64)
VALUE = LowRankSpec(value_rank=8)


def llama(positions: int = 300) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=positions, **sizes))
    randomize(model)
    return model.eval()


def counting() -> LlamaForCausalLM:
    """A model that says the number after the last one."""
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.nn.functional.normalize(torch.randn(99, 32), dim=1))
        model.lm_head.weight.copy_(60 * model.model.embed_tokens.weight.roll(1, 0))
    return model


def test_a_text_goes_on_as_the_model_says_and_long_ones_are_several():
    found = written_examples(counting(), None, 64, 0)
    lengths = [len(one["input_ids"]) for one in found.examples]
    assert max(lengths) == 300 and min(lengths) >= 4 and found.tokens == sum(lengths)
    assert sum(length >= written.LONGEST for length in lengths) == 32
    for text in (one["input_ids"] for one in found.examples):
        for piece in (text[start : start + written.LONGEST] for start in range(0, len(text), written.LONGEST)):
            for before, after in itertools.pairwise(piece):
                assert after == (before + 1) % 99 or (before + 1) % 99 in (1, 2)  # which are special
    assert written.LONGEST - 1 <= found.steps < 2 * written.LONGEST
    assert len({tuple(one["input_ids"][:1]) for one in found.examples}) > 20


@pytest.mark.parametrize("host", ["llama", *(pytest.param(one, marks=pytest.mark.full) for one in ("bloom", "opt"))])
def test_texts_are_as_probable_as_the_model_says_they_are(host: str):
    """The mean of log p over draws from p is minus the entropy, which a wrong cache or position would miss."""
    model = HOSTS[host].model().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)
    texts = [one["input_ids"] for one in written_examples(model, None, 96, 0, mixed=False).examples]
    special = {getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")} - {None}
    surprise = []
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text])).logits[0, :-1].double()
        logits[:, list(special)] = -torch.inf
        logs = logits.log_softmax(-1)
        entropy = torch.special.entr(logs.exp()).sum(-1)
        surprise.append(logs.gather(1, torch.tensor(text[1:])[:, None])[:, 0] + entropy)
    found = torch.cat(surprise)
    assert found.std() > 0.3  # else all would be alike, and nothing shown
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5


def test_conversions_take_them_by_default_and_say_what_they_cost(tmp_path: Path):
    model = llama(positions=40)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model.train()
    data, again = load_data(RANDOM, model, tmp_path), load_data(RANDOM, model, tmp_path)
    assert model.training and "64 texts of the model's own, drawn after a random token each (" in data.description
    assert data.description.endswith(" to 40 tokens, seed 0") and " steps), " in data.description and not data.held_out
    for one, other in zip(data.batches, again.batches, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    random = load_data(RANDOM, model, tmp_path, writes=False)
    assert "64 sequences of random tokens, " in random.description
    short = load_data(replace(RANDOM, pack=False), model, tmp_path)
    assert max(batch["input_ids"].shape[1] for batch in short.batches) <= 34
    with pytest.raises(HeadsError, match="the model takes 40; lower --max-length"):
        load_data(replace(RANDOM, max_length=50), model, tmp_path)
    healing = load_healing(RANDOM, model, tmp_path, held_out=8)
    assert healing.description == "64 examples of random inputs (texts that the original wrote), seed 0"
    _, report = hf_heads.convert(model, VALUE, calibration=RANDOM)
    assert "texts of the model's own" in report.calibration


def test_what_cannot_write_gets_random_tokens_and_says_why(monkeypatch: pytest.MonkeyPatch):
    bare = LlamaModel(llama().config).eval()
    assert "random tokens (LlamaModel has no head that writes), 4 to" in load_data(RANDOM, bare, None).description
    monkeypatch.setattr(written, "WEIGHTS", 1000)
    said = load_data(RANDOM, llama(), None).description
    assert "GiB of weights are too many to write with on a processor)" in said
    assert "own" not in load_data(RANDOM, HOSTS["roberta"].model(), None).description


def test_one_of_several_processes_writes_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    llama(positions=40).save_pretrained(tmp_path / "model")
    told: list[object] = []
    monkeypatch.setattr(Team, "agree", lambda self, word: told.append(word) or word)
    request = hf_heads.ConversionRequest(str(tmp_path / "model"), VALUE, calibration=RANDOM)
    report = hf_heads.convert_checkpoint(request, tmp_path / "out")
    (data,) = (word for word in told if isinstance(word, Data))
    assert "texts of the model's own" in data.description == report.calibration
