"""Four kinds of sentences that people rated: film reviews, tweets, product reviews, editorials.

All four are in the source archive that tests/data/train_minilm.py reads its film reviews from.
Each kind stands for one user's task.
"""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.data import train_minilm as task
from tests.data.train_minilm import Example, Split

FILES = {
    "films": "movieReviewSnippets",
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
KINDS = tuple(FILES)

TRAINING_SIZE = 1000
TEST_SHARE = 1 / 3
VALIDATION_SHARE = 1 / 6
LARGEST_PART = 1000
MAX_TOKENS = 40
SEED = 20240515


@cache
def split_of(kind: str, sdist: Path) -> Split:
    """Return the three parts of one kind, each sorted by length.

    Sentences of one product review or one editorial stay in one part.
    """
    documents = _rated_documents(kind, sdist)
    random.Random(SEED).shuffle(documents)
    total = sum(map(len, documents))
    sizes = [round(total * TEST_SHARE), round(total * VALIDATION_SHARE), total]
    limits = [LARGEST_PART, LARGEST_PART, TRAINING_SIZE]
    tokenizer = AutoTokenizer.from_pretrained(str(task.model_folder()))
    parts = []
    for size, limit in zip(sizes, limits, strict=True):
        sentences: list[tuple[str, int]] = []
        while documents and len(sentences) < min(size, limit):
            sentences += documents.pop()
        parts.append(_encoded(sentences[:limit], tokenizer))
    test, validation, train = parts
    return Split(train, validation, test)


def _rated_documents(kind: str, sdist: Path) -> list[list[tuple[str, int]]]:
    """Return the clearly rated sentences with their polarity, by the document they are from."""
    documents: dict[str, list[tuple[str, int]]] = {}
    seen = set()
    for line in _lines(sdist, FILES[kind]):
        number, rating, text = line.split("\t", 2)
        text = text.strip()
        if abs(float(rating)) >= task.CLEAR_RATING and text not in seen:
            seen.add(text)
            document = documents.setdefault(number.partition("_")[0], [])
            document.append((text, int(float(rating) > 0)))
    return list(documents.values())


def _lines(sdist: Path, file: str) -> list[str]:
    task.read_rated_lines(sdist)  # checks the digest
    with zipfile.ZipFile(sdist) as outer:
        archive = outer.read(task.ARCHIVE_IN_SDIST)
    with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
        member = inner.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
        assert member is not None
        return member.read().decode("utf-8").splitlines()


def _encoded(sentences: Sequence[tuple[str, int]], tokenizer: Any) -> list[Example]:
    texts = [text for text, _ in sentences]
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    labels = [label for _, label in sentences]
    return sorted(map(Example, encoded, labels), key=task.length)
