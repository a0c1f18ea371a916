"""Pretrains a small causal language model from scratch with head embeddings, or with the attention that it came with.

    pip install .
    python examples/pretrain_mhe.py --text wikitext.txt --heads mul --output mhe-mul
    python examples/pretrain_mhe.py --text wikitext.txt --heads mha --output mha

The last tenth of the text is kept for measuring perplexity. The result is an ordinary checkpoint: after
`import hf_heads`, `AutoModelForCausalLM.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hf_heads

# What stands in the place of multi-head attention of so many heads. `sha` is one head of the same width whose output
# projection is as large as for many, the paper's lower bound; `single` is the same with one head's output projection.
HEADS: dict[str, Callable[[int], hf_heads.HeadsSpec | None]] = {
    "mha": lambda heads: None,
    "mul": lambda heads: hf_heads.MheSpec(variant="mul"),
    "add": lambda heads: hf_heads.MheSpec(variant="add"),
    "mqa": lambda heads: hf_heads.MheSpec(variant="none", groups_q=heads),
    "sha": lambda heads: hf_heads.MheSpec(variant="none"),
    "single": lambda heads: hf_heads.PrunedSpec(kept=(0,)),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain a small causal language model.")
    parser.add_argument("--text", required=True, metavar="FILE", help="plain text to learn")
    parser.add_argument("--output", required=True, help="folder for the result")
    parser.add_argument("--heads", choices=HEADS, default="mul", help="kind of attention (default mul)")
    parser.add_argument("--vocabulary", type=int, default=2000, metavar="N", help="tokens to learn (default 2000)")
    parser.add_argument("--width", type=int, default=128, help="hidden size (default 128)")
    parser.add_argument("--number", type=int, default=8, help="heads (default 8)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence (default 128)")
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read(path: str, vocabulary: int, length: int) -> tuple[Dataset, Dataset, PreTrainedTokenizerFast]:
    """Sequences of `length` tokens to train and to measure on, and the tokenizer, learned on the first."""
    text = Path(path).read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text[:cut]], vocab_size=vocabulary, special_tokens=["<pad>"], show_progress=False)
    parts = []
    for part in (text[:cut], text[cut:]):
        ids = bpe.encode(part).ids
        rows = [ids[begin : begin + length] for begin in range(0, len(ids) - length + 1, length)]
        parts.append(Dataset.from_dict({"input_ids": rows, "labels": rows}))
    return parts[0], parts[1], PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")


def is_attention(name: str) -> bool:
    """Whether a parameter is one of the queries, keys, values or output projections."""
    return ".attention." in name and "LayerNorm" not in name


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    train, dev, tokenizer = read(options.text, options.vocabulary, options.length)
    set_seed(options.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.number,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.length,
        is_decoder=True,
    )
    if (spec := HEADS[options.heads](options.number)) is not None:
        config = hf_heads.heads_config(config, spec)
    model = AutoModelForCausalLM.from_config(config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=options.max_steps // 20,
            seed=options.seed,
            save_strategy="no",
            logging_steps=100,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()  # the tokenizer as well
    scores = {
        "perplexity": math.exp(trainer.evaluate()["eval_loss"]),
        "parameters": float(model.num_parameters()),
        "attention": float(sum(weight.numel() for name, weight in model.named_parameters() if is_attention(name))),
    }
    print(
        f"{options.heads}: perplexity {scores['perplexity']:.2f}, {model.num_parameters():,} parameters, "
        f"saved to {options.output}"
    )
    return scores


if __name__ == "__main__":
    main()
