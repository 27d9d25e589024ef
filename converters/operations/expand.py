"""Expand adapters into standard LoRA, in a form that a runtime loads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbfmt import packed
from vbfmt._files import PathLike, outputs, parents
from vbfmt._files.banks import Sources
from vbfmt.adapter import Adapter
from vbfmt.converters import WRITERS, Writer, runtimes, sources
from vbfmt.converters.hub import card as cards
from vbfmt.converters.lowrank import LowRank, combine, reduction
from vbfmt.converters.lowrank.combine import Sum
from vbfmt.converters.names import targets
from vbfmt.converters.operations import inputs
from vbfmt.converters.peft import on_base
from vbfmt.converters.runtimes import Finding
from vbfmt.errors import ConfigError, TargetError, few, warn

MUCH = 0.1
"""Warn if a lower rank loses more than this share of ΔW's norm, on average over the modules."""


@dataclass(frozen=True)
class Expanded:
    """The result of `expand`.

    Attributes:
        form: name of the form in `vbfmt.converters.WRITERS`.
        title: human-readable name of the form.
        rank: the largest rank of a module.
        rank_before: the largest rank of a module before it was reduced.
        digests: digests of the adapters, in the given order.
        modules: number of modules.
        size: size of the written files in bytes.
        lost: module's name → the share of ΔW's Frobenius norm that the lower rank loses.
        findings: what the runtimes in `check` would drop or need.
    """

    form: str
    title: str
    rank: int
    rank_before: int
    digests: tuple[str, ...]
    modules: int
    size: int
    lost: Mapping[str, float]
    findings: tuple[Finding, ...]

    @property
    def mean_lost(self) -> float:
        """The mean of `lost`."""
        return sum(self.lost.values()) / len(self.lost) if self.lost else 0.0


def form_of(dst: PathLike, to: str | None = None, check: Sequence[str] = ()) -> str:
    """Return the form of an output: `to` or, without it, the form that the output's name implies.

    Args:
        dst: the output's path.
        to: name of a form in `vbfmt.converters.WRITERS`, or None.
        check: runtimes that must load the form.

    Raises:
        ConfigError: the form or a runtime is unknown, or the arguments contradict each other.
    """
    wanted = {runtime: runtimes.form_of(runtime) for runtime in check}
    named = "gguf" if os.fspath(dst).lower().endswith(".gguf") else None
    form = to or named or "peft"
    if form not in WRITERS:
        raise ConfigError("unknown form", part="`to`", found=form, expected=", ".join(WRITERS))
    if named is not None and form != named:
        raise ConfigError(
            "the output's name is that of a GGUF file, but another form is asked for",
            file=dst,
            found=f"`to={form}`",
            expected="`to=gguf`",
            advice="give the name of a folder",
        )
    for runtime, taken in wanted.items():
        if taken != form:
            raise ConfigError(
                f"{runtime} does not load this form",
                part="`check`",
                found=form,
                expected=taken,
                advice=f"give `to={taken}`",
            )
    return form


def expand(
    src: inputs.Given | Sequence[inputs.Given],
    dst: PathLike,
    *,
    to: str | None = None,
    rank: int | None = None,
    weights: Sequence[float] = (),
    dtype: str = "float32",
    base: PathLike | None = None,
    topk: int | None = None,
    layout: str | None = None,
    revision: str | None = None,
    check: Sequence[str] = (),
    strict: bool = False,
    drop_extras: bool = False,
    banks: Sources | None = None,
    card: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Expanded:
    """Expand adapters into one standard LoRA.

    The factors are exact, and alpha equals the rank. From several adapters, the weighted sum of
    their ΔW is written. Its rank is the sum of their ranks.

    Args:
        src: packed files, checkpoints, repositories on the Hugging Face Hub, or adapters.
        dst: the folder or ``.gguf`` file to write. Missing parent folders are created.
        to: name of a form in `vbfmt.converters.WRITERS`. The default is ``gguf`` if `dst` ends in
            ``.gguf``, otherwise ``peft``.
        rank: reduce higher ranks to this rank, with the best approximation of ΔW.
        weights: one factor for each adapter's ΔW; by default, all are 1.
        dtype: dtype of the factors: float32, bfloat16 or float16.
        base: the base model. For GGUF: its folder, repository or GGUF file; by default, the
            repository that the adapters name. For PEFT: its folder or repository; names are then
            chosen so that PEFT loads every module on this base. For Uni-LoRA checkpoints: its
            folder.
        topk, layout: for checkpoints, as in `vbfmt.pack`.
        revision: branch, tag or commit of adapters that are repositories.
        check: runtimes in `vbfmt.converters.runtimes.FORMS` that must load the result.
        strict: also refuse an adapter if a runtime in `check` would drop a part of it or needs a
            setting.
        drop_extras: leave out trained biases and heads.
        banks: where to look for external banks, as in `vbfmt.load`.
        card: write a model card for the Hub, too.
        overwrite: replace an existing file, or the files of an existing folder.
        progress: called after each module with 1 and the number of all modules.

    Warns:
        VbfmtWarning: a runtime in `check` drops a part or needs a setting; there are other trained
            tensors; a lower rank loses much; base models differ or are not named.

    Raises:
        ConfigError: arguments contradict each other.
        VbfmtError: an adapter or the base cannot be read.
        TargetError: the adapter cannot be written in this form, or a runtime in `check` refuses it.
        OutputExistsError: `dst` exists, and `overwrite` is not set.
        StorageError: the output cannot be written.
    """
    writer = WRITERS[form_of(dst, to, check)]
    _require_rank(rank)
    _require_output(writer, dst, card=card, overwrite=overwrite)
    found = [inputs.located(each, revision=revision) for each in inputs.listed(src)]
    inputs.require_checkpoint(found, topk=topk, layout=layout)
    config = _config_of(base, writer, found)
    _require_inputs_stay(writer, dst, found, config)
    adapters = [
        inputs.loaded(each, topk=topk, layout=layout, base=config, banks=banks) for each in found
    ]
    if writer.needs_base and config is None:
        config = inputs.base_named_by(adapters, sources.config)
    total = combine.weighted(adapters, weights, drop_extras=drop_extras)
    rank_before = max(module.rank for module in total.modules)
    lost: dict[str, float] = {}

    def report(module: str, error: float) -> None:
        if rank is not None:
            lost[module] = error
        if progress is not None:
            progress(1, len(total.modules))

    reduced = reduction.Reduced(total, rank or rank_before, report)
    findings = _findings(reduced, check, drop_extras=drop_extras, strict=strict)
    options: dict[str, Any] = {"dtype": dtype, "drop_extras": drop_extras, "overwrite": overwrite}
    size = _write(writer, reduced, dst, config, options, card=card)
    result = Expanded(
        writer.name,
        writer.title,
        max(module.rank for module in reduced.modules),
        rank_before,
        tuple(map(packed.digest, adapters)),
        len(reduced.modules),
        size,
        lost,
        findings,
    )
    for notice in _notices(total, result, checked=bool(check)):
        warn(notice)
    unchecked = writer.name == "peft" and config is None
    if unchecked and (risk := targets.loading_risk([m.name for m in reduced.modules])):
        warn(risk)
    return result


def _write(
    writer: Writer,
    reduced: LowRank,
    dst: PathLike,
    config: PathLike | None,
    options: dict[str, Any],
    *,
    card: bool,
) -> int:
    """Write the LoRA in a writer's form, under the names that fit the base, and return its size."""
    if writer.needs_base:
        options["base"] = config
    given = reduced
    if writer.uses_base and config is not None:
        fit = on_base.fitted(given, config)
        given = fit.adapter
        options |= {"experts": fit.experts, "names": fit.names}
    if card:
        options["card"] = cards.lora(reduced, writer.name)
    with parents.created(dst):
        return writer.write(given, dst, **options)


def _require_rank(rank: object) -> None:
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise ConfigError(
            "not a rank", part="`rank`", found=repr(rank), expected="a whole number, at least 1"
        )


def _require_output(writer: Writer, dst: PathLike, *, card: bool, overwrite: bool) -> None:
    if card and not writer.files:
        raise ConfigError(
            "a model card needs a folder, but this form is one file",
            part="`card`",
            found=f"`to={writer.name}`",
        )
    require = outputs.require_folder if writer.files else outputs.require_file
    require(dst, overwrite=overwrite)


def _config_of(
    base: PathLike | None, writer: Writer, found: Sequence[inputs.Given]
) -> PathLike | None:
    """Return the local path of the base's config, or None if no base is given."""
    if base is None:
        return None
    paths = [each for each in found if not isinstance(each, Adapter)]
    if not (writer.needs_base or writer.uses_base or any(map(inputs.is_checkpoint, paths))):
        raise ConfigError("this form needs no base", part="`base`", found=f"`to={writer.name}`")
    return sources.config(os.fspath(base))


def _require_inputs_stay(
    writer: Writer, dst: PathLike, found: Sequence[inputs.Given], config: PathLike | None
) -> None:
    read = [*(file for each in found for file in inputs.files_of(each)), *inputs.configs(config)]
    outputs.require_no_input(dst, read, names=(*writer.files, cards.NAME))


def _findings(
    adapter: LowRank, check: Sequence[str], *, drop_extras: bool, strict: bool
) -> tuple[Finding, ...]:
    """Return what the runtimes would drop or need.

    Raises:
        TargetError: a runtime would refuse the adapter or, with `strict`, would drop a part or
            needs a setting.
    """
    found = [
        finding
        for runtime in check
        for finding in runtimes.require_loadable(adapter, runtime, drop_extras=drop_extras)
    ]
    if strict and found:
        rules = [finding.rule for finding in found]
        raise TargetError(
            "; ".join(
                f"{rule.runtime} {rule.effect} {finding.what} ({rule.source})"
                for rule, finding in zip(rules, found, strict=True)
            ),
            advice="; ".join(dict.fromkeys(rule.advice for rule in rules)),
        )
    return tuple(found)


def _notices(total: Sum, result: Expanded, *, checked: bool) -> Iterator[str]:
    yield from map(str, result.findings)
    if total.extras:
        advice = "" if checked else "; not every runtime loads them: see `check`, `drop_extras`"
        done = "left out" if total.drop_extras else f"kept{advice}"
        yield f"{len(total.extras)} other trained tensors ({few(total.extras)}) {done}"
    yield from filter(None, (combine.unweighted(total), combine.without_effect(total)))
    if result.mean_lost > MUCH:
        yield (
            f"rank {result.rank} loses much: {result.mean_lost:.0%} of ΔW on average; "
            f"the rank was {result.rank_before}"
        )
    doubt = combine.disagreement(total)
    if doubt:
        yield doubt
    elif not total.base_model:
        yield "no base model is named; some runtimes need base_model_name_or_path in the config"
