"""The parameter columns of the paper's Tables 1 to 4, counted again."""

from __future__ import annotations

import pytest

from spec.paper.page import half, on_disk, page
from spec.paper.parameters import CONVENTIONS, Convention, random_adapter, rows
from tests.conftest import ROOT

EIGHT = [Convention(8, all_weights=False)]
# At k = 2, 32-bit indices with one weight and 16-bit ones with both weights count the same.
THREE_PER_ROW = [Convention(32, all_weights=False), Convention(16, all_weights=True)]
SIX_PER_ROW = [Convention(64, all_weights=True)]
FOUND = {
    ("roberta-base", "VB-LoRA qv"): [],
    ("roberta-base", "VB-LoRA all"): EIGHT,
    ("roberta-large", "VB-LoRA qv"): [],
    ("roberta-large", "VB-LoRA all"): EIGHT,
    ("gpt2-medium", "VB-LoRA"): EIGHT,
    ("gpt2-large", "VB-LoRA"): THREE_PER_ROW,
    ("llama-2-7b", "VB-LoRA"): SIX_PER_ROW,
    ("llama-2-13b", "VB-LoRA"): SIX_PER_ROW,
    ("mistral-7b", "VB-LoRA"): THREE_PER_ROW,
    ("gemma-7b", "VB-LoRA"): THREE_PER_ROW,
}
FIT_NONE = {
    ("roberta-base", "VB-LoRA qv"),
    ("roberta-large", "VB-LoRA qv"),
    ("roberta-base", "Tied-LoRA all"),
    ("roberta-large", "Tied-LoRA all"),
    ("gpt2-medium", "LoRA"),
    ("gpt2-large", "LoRA"),
}
ROWS = {(row.model, row.method): row for row in rows()}


def test_the_page_in_the_specification_is_current():
    written = (ROOT / "spec" / "paper-parameters.md").read_text("utf-8")
    assert written == page(), "write it again: python -m spec.paper.page > spec/paper-parameters.md"


@pytest.mark.parametrize("name", FOUND)
def test_conventions_that_give_the_printed_figures(name):
    assert ROWS[name].conventions == FOUND[name]


def test_rows_that_nothing_fits():
    assert {name for name, row in ROWS.items() if not row.fits} == FIT_NONE


def test_sec_3_4_by_its_own_formula():
    """The count is hb + 3LMr(d/b) for models whose adapted layers are all d × d: query and value of
    RoBERTa."""
    for model, d, blocks in (("roberta-base", 768, 12), ("roberta-large", 1024, 24)):
        assert ROWS[model, "VB-LoRA qv"].count == 90 * 256 + 3 * blocks * 2 * 4 * (d // 256)


def test_half_the_sub_vectors_give_the_figures_for_query_and_value():
    for model in ("roberta-base", "roberta-large"):
        row = ROWS[model, "VB-LoRA qv"]
        assert row.gives(half(row))


def test_truncation_instead_of_rounding_gives_only_the_listed_figures():
    def cut(name: tuple[str, str]) -> bool:
        return f"{ROWS[name].count / 1e6:.6f}".startswith(ROWS[name].printed)

    assert {name for name in FIT_NONE if cut(name)} == {
        ("roberta-base", "VB-LoRA qv"),
        ("roberta-large", "Tied-LoRA all"),
    }


@pytest.mark.parametrize("model", ["gpt2-medium", "gpt2-large"])
def test_lora_on_gpt2_fits_no_rank(model):
    row = ROWS[model, "LoRA"]
    per_rank = row.count // 4
    assert not any(row.gives(rank * per_rank) for rank in range(1, 65))


def test_tied_lora_on_all_layers_of_the_base_model_fits_no_rank():
    from vbfmt.estimate.methods import tied_lora

    row = ROWS["roberta-base", "Tied-LoRA all"]
    assert not any(row.gives(tied_lora(row.layers, rank)) for rank in range(1, 65))


def test_the_text_of_the_paper_counts_the_same_sub_vectors():
    assert ROWS["llama-2-7b", "VB-LoRA"].rows == 39040


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.shape])
def test_files_are_no_larger_than_the_count_and_a_header(name):
    row = ROWS[name]
    front = 20_000  # header: about 45 bytes a module
    assert 4 * row.count <= on_disk(row) <= 4 * row.count + front
    assert row.rows == random_adapter(row.layers, row.shape).N


def test_conventions_are_tried_in_every_plausible_way():
    assert len(set(CONVENTIONS)) == 8


def test_rows_of_other_methods_have_no_sub_vectors():
    row = next(row for row in rows() if row.shape is None)
    with pytest.raises(ValueError, match="not a row of VB-LoRA"):
        half(row)
