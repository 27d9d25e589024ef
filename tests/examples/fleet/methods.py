"""The compared methods: LoRA, one bank for each adapter, and banks that adapters share."""

from __future__ import annotations

from dataclasses import dataclass

from tests.examples.fleet.training import Settings

OWN, SEED, FILMS, JOINT = "own", "seed", "films", "joint"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        title: name in the table.
        settings: how its adapters are made and trained.
        bank: where its bank comes from: `OWN` (trained with the adapter), `SEED` (random, frozen),
            `FILMS` (trained with the film reviews' adapter, frozen), `JOINT` (trained by the
            adapters of all kinds together); None for methods without a bank.
    """

    title: str
    settings: Settings
    bank: str | None = None

    @property
    def bytes_of_bank(self) -> int:
        """Return the bytes of the bank. With `OWN` every user has one; otherwise users share it."""
        return 4 * self.settings.h * self.settings.b if self.bank else 0


# The learning rates were chosen from a few on the validation parts.
METHODS = {
    "lora": Method("LoRA, r = 8", Settings(method="lora", rank=8, lr=1e-3)),
    "seed": Method("bank from a seed, frozen", Settings(), SEED),
    "seed-k2": Method("the same, k = 2", Settings(k=2), SEED),
    "seed-k8": Method("the same, k = 8", Settings(k=8), SEED),
    "joint": Method("bank trained by all four together", Settings(lr_bank=3e-3), JOINT),
    "own": Method(
        "VB-LoRA, a bank of its own",
        Settings(
            h=104,
            k=2,
            bound=0.1,
            lr=1e-2,
            lr_bank=6e-3,
            train_unselected=False,
            starts_small=False,
        ),
        OWN,
    ),
    "films": Method("bank of the film reviews' own, frozen", Settings(h=104), FILMS),
    "seed-plain": Method(
        "bank from a seed, trained as in PEFT",
        Settings(bound=0.2, lr=1e-1, train_unselected=False, starts_small=False),
        SEED,
    ),
    "head": Method("the head alone", Settings(method="head")),
}
