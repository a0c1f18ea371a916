"""Tokenizers and image processors for the twins, made in memory and saved beside them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MarianTokenizer, PreTrainedTokenizerFast

WORDS = [f"word{number}" for number in range(94)]
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer whose words are word0 to word93, with the special tokens of BERT, 99 in all."""
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    ).save_pretrained(folder)


@cache
def _pieces() -> bytes:
    """A SentencePiece model of the English and German numbers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*NUMBERS, *NUMBERS.values()] * 20),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def save_marian_tokenizer(folder: Path) -> None:
    """One SentencePiece model for both languages, in the files of the Marian checkpoints on the hub."""
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(_pieces())
    known = sentencepiece.SentencePieceProcessor(model_proto=_pieces())
    pieces = ["</s>", "<unk>", *(known.id_to_piece(index) for index in range(3, known.get_piece_size()))]
    pieces += [f"unused{index}" for index in range(len(pieces), 98)] + ["<pad>"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(vocabulary), model_max_length=40
    ).save_pretrained(folder)


def save_image_processor(folder: Path) -> None:
    """A processor that makes 16 x 16 pixels of any image."""
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
