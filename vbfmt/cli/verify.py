"""``vbfmt verify``: every byte and every rule of packed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter
    from vbfmt.packed import Report


@click.command("verify")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--against", metavar="SRC", type=click.Path(), help="A checkpoint to compare with.")
@click.option("--digest", metavar="sha256:…", help="The digest that you trust.")
@click.option("--topk", type=click.IntRange(min=1), help="k, for --against logits without config.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    files: tuple[str, ...],
    against: str | None,
    digest: str | None,
    topk: int | None,
    as_json: bool,
) -> None:
    """Check every digest and every rule of FILE..., one line each.

    With --against, pack the checkpoint SRC again and prove that the file says the same. The digest
    inside a file shows damage, not tampering: for that, compare with one that you trust (--digest).
    """
    source = _packed_again(against, topk) if against else None
    answers = [_answer(file, digest, source, against) for file in files]
    if as_json:
        from vbfmt.cli import show

        show.as_json(answers)
    else:
        for answer in answers:
            click.echo(_line(answer))
    if not all(answer["ok"] for answer in answers):
        ctx.exit(1)


def _packed_again(source: str, topk: int | None) -> Adapter:
    from vbfmt.converters import read

    return read(source, topk=topk)


def _answer(
    file: str, digest: str | None, source: Adapter | None, against: str | None
) -> dict[str, Any]:
    from vbfmt.errors import StorageError
    from vbfmt.packed import Report, verify

    try:
        report = verify(file, digest=digest)
    except StorageError as error:
        report = Report(file, None, (error,))
    problems = [_problem(problem) for problem in report.problems]
    if source is not None and report.ok:
        problems += _differences(report, source, against)
    answer: dict[str, Any] = {"file": file, "ok": not problems, "digest": report.digest}
    if source is not None:
        answer["against"] = against
    return {**answer, "problems": problems}


def _problem(problem: Any) -> dict[str, Any]:
    fields = ("kind", "part", "what", "found", "expected", "advice")
    return {"message": problem.detail(), **{name: getattr(problem, name) for name in fields}}


def _differences(report: Report, source: Adapter, against: str | None) -> list[dict[str, Any]]:
    from vbfmt.difference import compare
    from vbfmt.packed import load

    return [
        {"message": f"not what {against} says: {difference}", "kind": "difference"}
        for difference in compare(load(report.file, verify=False), source).lines()
    ]


def _line(answer: dict[str, Any]) -> str:
    from vbfmt.errors import printable

    file = printable(answer["file"])
    if answer["ok"]:
        same = f", says what {printable(answer['against'])} says" if "against" in answer else ""
        return f"{file}: ok, {answer['digest']}{same}"
    first, *rest = answer["problems"]
    more = f" (and {len(rest)} more; --json lists them)" if rest else ""
    return f"{file}: FAILED, {first['message']}{more}"
