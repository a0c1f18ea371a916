"""Fine-tunes a Marian translation checkpoint, original or converted, and measures BLEU before and after.

    pip install . sacrebleu sentencepiece
    hf-heads convert Helsinki-NLP/opus-mt-en-de --to collab --rank 256 --output opus-collab
    python examples/translate_marian.py --model opus-collab --train train.jsonl --dev dev.jsonl --output opus-tuned

The files need a column for the source texts and one for their translations, such as {"en": "Hello.", "de": "Hallo."};
--columns gives their names.

An interrupted run goes on with --resume. The result is an ordinary checkpoint: after `import hf_heads`,
`AutoModelForSeq2SeqLM.from_pretrained` loads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_heads  # noqa: F401  lets the Auto classes load converted checkpoints; nothing else here is special


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a Marian checkpoint, with BLEU before and after.")
    parser.add_argument("--model", required=True, help="a folder or a hub id; original or converted")
    parser.add_argument("--output", required=True, help="folder for the checkpoints and the result")
    parser.add_argument("--train", required=True, metavar="FILE", help=".jsonl, .csv, .tsv or .parquet")
    parser.add_argument("--dev", required=True, metavar="FILE", help="the same, to measure BLEU on")
    parser.add_argument("--columns", default="en,de", metavar="A,B", help="of source and target (default en,de)")
    parser.add_argument("--samples", type=int, metavar="N", help="train on the first N rows only")
    parser.add_argument("--eval-samples", type=int, metavar="N", help="measure BLEU on the first N rows only")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--max-steps", type=int, default=-1, metavar="N", help="stop after N steps, whatever --epochs")
    parser.add_argument("--save-steps", type=int, default=500, metavar="N", help="a checkpoint every N steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    options = parser.parse_args(arguments)
    if options.columns.count(",") != 1:
        parser.error(f"--columns {options.columns}: name two, source and target, as in --columns en,de")
    options.checkpoint = get_last_checkpoint(options.output) if Path(options.output).is_dir() else None
    if options.resume and not options.checkpoint:
        parser.error(f"--resume: there is no checkpoint in '{options.output}'")
    if options.checkpoint and not options.resume:
        parser.error(f"'{options.output}' has checkpoints: add --resume, or choose another --output")
    return options


def read(path: str, samples: int | None) -> Dataset:
    """The rows of a data file; `datasets` knows the format by the file's ending."""
    file = Path(path).resolve()
    rows = load_dataset(str(file.parent), data_files=file.name, split="train")
    return rows.select(range(min(samples, len(rows)))) if samples else rows


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = parse(arguments)
    set_seed(options.seed)
    source, target = options.columns.split(",")
    train, dev = read(options.train, options.samples), read(options.dev, options.eval_samples)

    # The Trainer itself would restore only those weights that have the same name in the file and in the model.
    start = options.checkpoint or options.model
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSeq2SeqLM.from_pretrained(start, dtype="float32")
    for part in (model.get_encoder(), model.get_decoder()):  # sines, never saved: transformers 5.24 would train them
        part.embed_positions.requires_grad_(False)

    def tokens(rows: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(rows[source], text_target=rows[target], truncation=True, max_length=128)

    train, dev = train.map(tokens, batched=True), dev.map(tokens, batched=True)

    def bleu(prediction: EvalPrediction) -> dict[str, float]:
        ids = np.where(prediction.predictions == -100, tokenizer.pad_token_id, prediction.predictions)
        hypotheses = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {"bleu": sacrebleu.corpus_bleu(hypotheses, [list(dev[target])]).score}

    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            predict_with_generate=True,
            save_steps=options.save_steps,
            save_total_limit=2,
            logging_steps=50,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=bleu,
    )
    before = trainer.evaluate()["eval_bleu"]  # with --resume: of the checkpoint
    trainer.train(resume_from_checkpoint=options.checkpoint)
    trainer.save_model()  # the tokenizer as well
    scores = {"bleu_before": before, **trainer.evaluate()}
    print(f"BLEU {before:.2f} before, {scores['eval_bleu']:.2f} after, on {len(dev)} texts, saved to {options.output}")
    return scores


if __name__ == "__main__":
    main()
