"""``vbfmt expand``: convert adapters to standard LoRA, in a form that a runtime loads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from vbfmt.cli import arguments as args
from vbfmt.cli import show
from vbfmt.cli.command import Command
from vbfmt.cli.translation import in_options

if TYPE_CHECKING:
    from vbfmt.converters.operations.expand import Expanded

_SHOWN = 3
"""Number of modules whose loss is printed without --verbose."""


@click.command(
    "expand",
    cls=Command,
    examples=(
        "vbfmt expand adapter.vblora -o lora-folder",
        "vbfmt expand adapter.vblora --base me/model -o adapter.gguf",
        "vbfmt expand adapter.vblora --check vllm --check sglang --strict -o lora",
        "vbfmt expand a.vblora b.vblora --weight 0.7 --weight 0.3 --rank 8 -o lora",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=args.PACKED)
@args.output_option("a folder, or with --to gguf a file (.gguf)", ".gguf")
@args.WEIGHTS
@click.option("--rank", type=click.IntRange(min=1), help="Reduce the rank to this number.")
@click.option(
    "--dtype",
    type=args.DTYPE,
    default="float32",
    show_default=True,
    help="Dtype of the factors; also fp32, bf16, fp16.",
)
@click.option(
    "--to",
    type=click.Choice(["peft", "gguf", "mlx"], case_sensitive=False),
    help="peft: a folder for PEFT, vLLM, SGLang and TGI; gguf: a file for llama.cpp; mlx: a folder "
    "for mlx-lm.  [default: gguf if the output ends with .gguf, else peft]",
)
@click.option(
    "--base",
    type=args.PATH,
    help="The base model's folder or repository, or its GGUF file. For peft, the module names are "
    "checked against it.  [default for gguf: the repository that FILE names]",
)
@args.TOPK
@click.option("--layout", type=args.LAYOUT, help="The layout of a checkpoint, as for pack.")
@args.revision_option("FILEs")
@click.option(
    "--check",
    type=args.RUNTIME,
    multiple=True,
    help="Report what that runtime would refuse or drop. May be repeated.",
)
@click.option("--strict", is_flag=True, help="Fail if --check finds anything.")
@click.option("--drop-extras", is_flag=True, help="Leave out trained biases and heads.")
@args.BANKS
@args.CARD
@args.force_option("the files of an existing folder")
@args.JSON
def command(
    files: tuple[str, ...],
    output: str,
    weights: tuple[float, ...],
    rank: int | None,
    dtype: str,
    check: tuple[str, ...],
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Expand FILE into standard LoRA.

    FILE is a packed file, a checkpoint, - for standard input, or owner/name for a repository on the
    Hugging Face Hub if there is no such path. The factors are exact. alpha equals the rank, so
    runtimes do not scale them. Several FILEs become one LoRA: the sum of their weight updates, each
    multiplied by its --weight. Its rank is the sum of their ranks. With --rank, the best
    approximation of a lower rank is written instead, and the loss is printed. With --check, nothing
    is written if that runtime would refuse the result.
    """
    args.require_weights(weights, files)
    if strict and not check:
        raise click.UsageError("--strict needs --check")
    from vbfmt.cli.packed_input import adapter_path
    from vbfmt.cli.progress import shown
    from vbfmt.cli.written import show_upload_line
    from vbfmt.converters.operations.expand import expand

    options |= {"weights": weights, "rank": rank, "dtype": dtype, "check": check, "strict": strict}
    paths = [adapter_path(file) for file in files]
    with shown("modules") as progress:
        done = expand(paths, output, progress=progress, **options)
    if as_json:
        show.as_json(_as_dict(done, output, dtype, check))
        return
    for line in _lines(done, output, dtype, check):
        show.say(line)
    if rank is not None:
        _print_losses(rank, done)
    show_upload_line(output)


def _lines(done: Expanded, output: str, dtype: str, check: tuple[str, ...]) -> Iterator[str]:
    yield (
        f"{output}: {done.title} of rank {done.rank} in {dtype}, {done.modules} modules, "
        f"{show.size(done.size)}"
    )
    for runtime in check:
        if not any(finding.rule.runtime == runtime for finding in done.findings):
            yield f"{runtime}: no problems found"


def _as_dict(done: Expanded, output: str, dtype: str, check: tuple[str, ...]) -> dict[str, Any]:
    return {
        "output": output,
        "form": done.form,
        "rank": done.rank,
        "dtype": dtype,
        "digests": list(done.digests),
        "modules": done.modules,
        "bytes": done.size,
        "lost": dict(done.lost),
        "check": list(check),
        "findings": [
            {
                "runtime": finding.rule.runtime,
                "effect": finding.rule.effect,
                "what": finding.what,
                "advice": in_options(finding.rule.advice),
                "source": finding.rule.source,
            }
            for finding in done.findings
        ],
    }


def _print_losses(rank: int, done: Expanded) -> None:
    if done.rank_before <= rank:
        show.say(f"nothing lost: the rank was already {done.rank_before}")
        return
    show.say(
        "lost by the lower rank, as a share of the Frobenius norm of each ΔW: "
        f"{done.mean_lost:.3g} on average over {len(done.lost)} modules"
    )
    worst = sorted(done.lost, key=lambda name: (-done.lost[name], name))
    for position, name in enumerate(worst):
        (show.say if position < _SHOWN else show.detail)(f"  {name}  {done.lost[name]:.3g}")
    if len(worst) > _SHOWN:
        rest = f"  … and {len(worst) - _SHOWN} more (-v prints all)"
        if show.verbosity() == 0:
            show.say(rest)
