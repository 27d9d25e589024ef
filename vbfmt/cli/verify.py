"""``vbfmt verify``: check every byte and every rule of packed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command
from vbfmt.cli.failure import FIELDS, in_user_terms
from vbfmt.cli.packed_input import path_of, shown_as
from vbfmt.errors import VbfmtError

if TYPE_CHECKING:
    from vbfmt.converters.operations.proof import Reference
    from vbfmt.packed import Report


@click.command(
    "verify",
    cls=Command,
    examples=(
        "vbfmt verify adapter.vblora",
        "vbfmt verify adapter.vblora --against checkpoint",
        "vbfmt verify me/adapter --json",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=args.PACKED)
@click.option("--against", metavar="SRC", type=args.PATH, help="A checkpoint to compare with.")
@args.revision_option("SRC, or of FILEs,")
@click.option("--layout", type=args.LAYOUT, help="The layout of SRC, as for pack.")
@click.option("--base", type=args.PATH, help="If SRC is Uni-LoRA: the base model's folder.")
@args.BANKS
@click.option("--base-model", metavar="NAME", help="The base model name that was given to pack.")
@click.option(
    "--digest", callback=args.digest, metavar="sha256:HEX", help="The digest that you trust."
)
@args.TOPK
@args.JSON
@click.pass_context
def command(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    against: str | None,
    revision: str | None,
    banks: tuple[str, ...],
    digest: str | None,
    as_json: bool,
    **about_source: Any,
) -> None:
    """Check every digest and every rule of packed files.

    FILE is a packed file, - for standard input, or owner/name for a repository on the Hugging Face
    Hub if there is no such path. With --against, the checkpoint SRC is packed again and must have
    the same content as FILE (to rounding, if SRC is in PEFT's top-k form). The checksums inside a
    file show damage, not tampering: to exclude that, give a digest that you trust (--digest). The
    digest is of the content and differs from what sha256sum prints; --json has both.
    Exit status 0 if every FILE is valid, else 1. With --json, the result also lists
    errors in reading FILE or SRC.
    """
    _require_consistent(files, against, **about_source)
    source: Reference | VbfmtError | None = None
    if against is not None:
        from vbfmt.converters.operations.proof import reference

        try:
            source = reference(against, revision=revision, **about_source)
        except VbfmtError as error:
            if not as_json:
                raise
            source = in_user_terms(error)
    file_revision = None if against is not None else revision
    answers = [_answer(file, digest, banks, source, against, file_revision) for file in files]
    if as_json:
        show.as_json(answers)
    else:
        for answer in answers:
            (show.say if answer["ok"] else show.say_always)(_line(answer))
            if answer["ok"]:
                show.say(f"  {answer['digest']}")
            if answer["sha256"]:
                show.detail(f"  {answer['sha256']}  is what sha256sum prints")
    if not all(answer["ok"] for answer in answers):
        ctx.exit(1)


def _require_consistent(
    files: tuple[str, ...], against: str | None, **about_source: object
) -> None:
    for name, value in about_source.items():
        if against is None and value is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --against")
    if against is not None and against.lower().endswith(".vblora"):
        import os

        swapped = len(files) == 1 and os.path.isdir(files[0])
        meant = (
            f"vbfmt verify {against} --against {files[0]}"
            if swapped
            else f"vbfmt diff {files[0]} {against}"
        )
        raise click.UsageError(
            f"--against needs a checkpoint, but {against} is a packed file; did you mean: {meant}"
        )


def _answer(
    file: str,
    digest: str | None,
    banks: tuple[str, ...],
    source: Reference | VbfmtError | None,
    against: str | None,
    revision: str | None,
) -> dict[str, Any]:
    from vbfmt.packed import Report, verify

    path = file
    try:
        path = path_of(file, revision=revision)
        report = verify(path, digest=digest, banks=banks)
    except VbfmtError as error:
        report = Report(file, None, (error,))
    problems = [_problem(in_user_terms(p), _elsewhere(p, path)) for p in report.problems]
    allowed = None
    if isinstance(source, VbfmtError):
        problems.append(_problem(source, message=str(source)))
    elif source is not None and report.ok:
        allowed, differences = _compared(report, banks, source, against)
        problems += differences
    answer: dict[str, Any] = {
        "file": file,
        "ok": not problems,
        "digest": report.digest,
        "sha256": show.sha256(path) if report.digest else None,
    }
    if source is not None:
        answer |= {"against": against, "largest_difference": allowed}
    return {**answer, "problems": problems}


def _elsewhere(problem: VbfmtError, path: str) -> str | None:
    """Return the message, with the file's name, if the problem is in another file, such as a
    bank."""
    return None if problem.file in (None, path, shown_as(path)) else str(problem)


def _problem(problem: VbfmtError, message: str | None = None) -> dict[str, Any]:
    line = problem.detail() if message is None else message
    return {"message": line, **{name: getattr(problem, name) for name in FIELDS}}


def _compared(
    report: Report, banks: tuple[str, ...], source: Reference, against: str | None
) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the largest difference of a factor if the contents match, else the problems."""
    from vbfmt.converters.operations.proof import against as compared
    from vbfmt.packed import load

    found = compared(load(report.file, verify=False, banks=banks), source)
    if found.same:
        return found.difference.largest, []
    what = f"does not match {against}"
    return None, [
        {
            "message": f"{what}: {difference}",
            **dict.fromkeys(FIELDS),
            "kind": "difference",
            "what": what,
            "found": difference,
        }
        for difference in found.difference.lines()
    ]


def _line(answer: dict[str, Any]) -> str:
    if answer["ok"]:
        return f"{answer['file']}: ok{_same(answer)}"
    first, *rest = answer["problems"]
    more = f" (and {len(rest)} more; --json lists them)" if rest else ""
    return f"{answer['file']}: FAILED, {first['message']}{more}"


def _same(answer: dict[str, Any]) -> str:
    if "against" not in answer:
        return ""
    difference = answer["largest_difference"]
    return f", matches {answer['against']}" + (f", to {difference:.1g}" if difference else "")
