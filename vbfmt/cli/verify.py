"""``vbfmt verify``: every byte and every rule of packed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli.arguments import BANKS, LAYOUT, PATH
from vbfmt.cli.arguments import digest as checked

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter
    from vbfmt.errors import VbfmtError
    from vbfmt.packed import Report


@click.command("verify")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("--against", metavar="SRC", type=PATH, help="A checkpoint to compare with.")
@click.option("--revision", metavar="REV", help="Of SRC on the Hub: a branch, a tag or a commit.")
@click.option("--layout", type=LAYOUT, help="What SRC is, as for pack.")
@click.option("--base", type=PATH, help="For SRC that is Uni-LoRA: the base's folder.")
@BANKS
@click.option("--digest", callback=checked, metavar="sha256:…", help="The digest that you trust.")
@click.option("--topk", type=click.IntRange(min=1), help="k, for --against logits without config.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    files: tuple[str, ...],
    against: str | None,
    revision: str | None,
    layout: str | None,
    base: str | None,
    banks: tuple[str, ...],
    digest: str | None,
    topk: int | None,
    as_json: bool,
) -> None:
    """Check every digest and every rule of FILE..., one line each.

    With --against, pack the checkpoint SRC again and prove that the file says the same. The digest
    inside a file shows damage, not tampering: for that, compare with one that you trust (--digest).
    Exit status 0 if all is well, 1 if not. With --json, whatever is wrong is in the answer: a FILE
    or SRC that cannot be read, too.
    """
    about_source = {"revision": revision, "layout": layout, "base": base, "topk": topk}
    for name, value in about_source.items():
        if against is None and value is not None:
            raise click.UsageError(f"--{name} is for --against")
    from vbfmt.cli import show
    from vbfmt.errors import VbfmtError

    source: Adapter | VbfmtError | None = None
    try:
        source = _packed_again(against, revision, layout, base, topk) if against else None
    except VbfmtError as error:
        if not as_json:
            raise
        source = error
    answers = [_answer(file, digest, banks, source, against) for file in files]
    if as_json:
        show.as_json(answers)
    else:
        for answer in answers:
            show.say(_line(answer))
    if not all(answer["ok"] for answer in answers):
        ctx.exit(1)


def _packed_again(
    source: str, revision: str | None, layout: str | None, base: str | None, topk: int | None
) -> Adapter:
    from vbfmt.converters import read, sources

    path = sources.checkpoint(source, revision=revision)
    return read(path, layout=layout, topk=topk, base=base and sources.config(base))


def _answer(
    file: str,
    digest: str | None,
    banks: tuple[str, ...],
    source: Adapter | VbfmtError | None,
    against: str | None,
) -> dict[str, Any]:
    from vbfmt.errors import StorageError, VbfmtError
    from vbfmt.packed import Report, verify

    try:
        report = verify(file, digest=digest, banks=banks)
    except StorageError as error:
        report = Report(file, None, (error,))
    problems = [_problem(problem, _elsewhere(problem, report)) for problem in report.problems]
    if isinstance(source, VbfmtError):
        problems.append(_problem(source, message=str(source)))
    elif source is not None and report.ok:
        problems += _differences(report, banks, source, against)
    answer: dict[str, Any] = {"file": file, "ok": not problems, "digest": report.digest}
    if source is not None:
        answer["against"] = against
    return {**answer, "problems": problems}


def _elsewhere(problem: VbfmtError, report: Report) -> str | None:
    """The whole message of a fault in another file, its bank's, say."""
    return None if problem.file == report.file else str(problem)


_FIELDS = ("kind", "part", "what", "found", "expected", "advice")


def _problem(problem: VbfmtError, message: str | None = None) -> dict[str, Any]:
    said = problem.detail() if message is None else message
    return {"message": said, **{name: getattr(problem, name) for name in _FIELDS}}


def _differences(
    report: Report, banks: tuple[str, ...], source: Adapter, against: str | None
) -> list[dict[str, Any]]:
    from vbfmt.analysis.difference import compare
    from vbfmt.packed import load

    what = f"not what {against} says"
    return [
        {
            "message": f"{what}: {difference}",
            **dict.fromkeys(_FIELDS),
            "kind": "difference",
            "what": what,
            "found": difference,
        }
        for difference in compare(load(report.file, verify=False, banks=banks), source).lines()
    ]


def _line(answer: dict[str, Any]) -> str:
    if answer["ok"]:
        same = f", says what {answer['against']} says" if "against" in answer else ""
        return f"{answer['file']}: ok, {answer['digest']}{same}"
    first, *rest = answer["problems"]
    more = f" (and {len(rest)} more; --json lists them)" if rest else ""
    return f"{answer['file']}: FAILED, {first['message']}{more}"
