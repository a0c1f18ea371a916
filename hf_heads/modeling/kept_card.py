"""The model card that goes along when a model is saved: how it is loaded is of now, what was measured is of then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file

CARD = "README.md"
ANY_ID = '"PATH_OR_ID"'
SAVED_AGAIN = (
    "Saved again by `save_pretrained`: the weights may have been trained since they were converted. Sizes and blocks "
    "are as they say; all else that was measured was measured before that."
)
_TITLE = re.compile(r"^# .+, attention heads re-parametrized \(.+\)$", re.M)
_MEASURED = re.compile(r"^## (Lost|Healed|Scores|Measured)$", re.M)
_INDEX = re.compile(r"^model-index:\n(?:(?: |- ).*\n)*", re.M)  # shown by the hub as results of these weights
_TASK = re.compile(r"^pipeline_tag:.*\n", re.M)
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.M | re.S)
_BLOCKS = re.compile(r"^## Blocks\n.*?(?=^## |\Z)", re.M | re.S)
_OF_A_TRAINER = "generated_from_trainer"  # a tag
_GENERIC = "has been pushed on the Hub. This model card has been automatically generated."  # of transformers, of no use
_CODE = """\
## Use

```python
{lines}
```

The flag lets transformers (5.20 or newer) run `{code}`, which is in this repository; nothing else has to be
installed, and every AutoModelForX takes it. Where hf-heads is installed, this line before those has its own classes
taken, with the flag and without:

```python
import hf_heads
```
"""
_NO_CODE = """\
## Use

```python
import hf_heads  # lets the Auto classes load this checkpoint
from transformers import AutoModel  # or any AutoModelForX

model = AutoModel.from_pretrained({id})
```

Where no import can be added, `trust_remote_code=True` reaches an installed hf-heads as well.
"""


def use_text(code: str | None, auto: str, any_id: str, embedder: bool) -> str:
    """A card's section on loading.

    Args:
        code: the file with the classes; None where it only reaches an installed hf-heads.
        auto: the Auto class that makes what was saved.
        any_id: what it is loaded by, in quotes.
        embedder: it is a folder of sentence-transformers.
    """
    if code is None:
        return _NO_CODE.format(id=any_id)
    lines = f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained({any_id}, trust_remote_code=True)"
    if embedder:
        made = f"model = SentenceTransformer({any_id}, trust_remote_code=True)"
        lines = f"from sentence_transformers import SentenceTransformer\n\n{made}"
    return _CODE.format(lines=lines, code=code)


def with_use(card: str, use: str) -> str:
    """A card with another section on loading; one that has none stays as it is."""
    return _USE.sub(lambda _: f"{use.strip()}\n\n", card)


def is_card_of_ours(text: str) -> bool:
    """Whether a card says what a conversion did."""
    return _TITLE.search(text) is not None


def loaded_card(where: str, **options: Any) -> str | None:
    """The card of ours in a folder or a repository that a model was loaded from; None where there is none.

    Args:
        where: the folder or the repository.
        options: of `transformers.utils.cached_file`.
    """
    try:
        path = cached_file(where, CARD, **options)
        text = None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if text and is_card_of_ours(text) else None


def saved_again(card: str, auto: str) -> str:
    """A card whose numbers are of the weights before they were saved again, which it says.

    Args:
        card: of ours.
        auto: the Auto class that makes what is saved; of another task than the card's, that is not said any more.
    """
    card = _INDEX.sub("", card, count=1)
    if f"{auto}.from_pretrained(" not in card and "SentenceTransformer(" not in card:
        card = _TASK.sub("", card, count=1)
    if SAVED_AGAIN not in card:
        card = _TITLE.sub(lambda title: f"{title[0]}\n\n{SAVED_AGAIN}", card, count=1)
    return _MEASURED.sub(r"## \1 (measured before it was saved again)", card)


def put_card(folder: str, own: str, auto: str, use: str) -> None:
    """Write a card of ours into a folder, unless there is one of somebody else.

    One of ours about the same conversion stays, since somebody may have added to it, but for how it is loaded and what
    `saved_again` says. What a Trainer wrote of its training is followed by ours.

    Args:
        folder: where the model is.
        own: the card.
        auto: as for `saved_again`.
        use: its section on loading.
    """
    path = Path(folder) / CARD
    there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if there is not None and is_card_of_ours(there):
        if _facts(there) == _facts(own):
            own = saved_again(there, auto) if SAVED_AGAIN in own else there
    elif there is not None and (merged := with_trainers(there, own)) is not None:
        own = merged
    elif there is not None and _GENERIC not in there:
        return
    path.write_text(with_use(own, use), encoding="utf-8")


def with_trainers(theirs: str, own: str) -> str | None:
    """A card that a Trainer generated, followed by ours; None where it is of another kind.

    Of the metadata, what the Trainer says stays, and what it lacks is ours: licence, task, what the original was.

    Args:
        theirs: the card in the folder.
        own: a card of ours.
    """
    try:
        card, ours = ModelCard(theirs), ModelCard(own)
    except Exception:  # whatever its parser raises: metadata that cannot be read
        return None
    tags = list(card.data.get("tags") or ())
    if _OF_A_TRAINER not in tags:
        return None
    known = {name: value for name, value in ours.data.to_dict().items() if name != "model-index"}
    for name, value in {**known, "tags": list(dict.fromkeys([*tags, *(ours.data.get("tags") or ())]))}.items():
        if name == "tags" or not card.data.get(name):
            card.data[name] = value
    card.text = f"{card.text.rstrip()}\n\n{ours.text.strip()}\n"
    return str(card)


def _facts(card: str) -> list[str]:
    """What a card says was done."""
    return [found[0].strip() for found in map(lambda one: one.search(card), (_TITLE, _BLOCKS)) if found]
