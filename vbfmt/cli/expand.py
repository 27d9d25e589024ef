"""``vbfmt expand``: a packed file → standard LoRA, in the form that a runtime takes."""

from __future__ import annotations

import click


@click.command("expand")
@click.argument("file", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="The folder (or .gguf) to write."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the factors.",
)
@click.option(
    "--to",
    type=click.Choice(["peft", "gguf", "mlx"]),
    default="peft",
    show_default=True,
    help="PEFT's folder (vLLM, SGLang, TGI too), llama.cpp's file, or mlx-lm's folder.",
)
@click.option("--base", type=click.Path(), help="For gguf: the base's folder or its GGUF file.")
@click.option("--check", metavar="RUNTIME", help="Say first what vllm, sglang, tgi, … would drop.")
@click.option("--drop-extras", is_flag=True, help="Leave out trained biases and heads.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
def command(
    file: str,
    output: str,
    dtype: str,
    to: str,
    base: str | None,
    check: str | None,
    drop_extras: bool,
    force: bool,
) -> None:
    """Expand FILE into standard LoRA.

    The factors are exact; alpha equals the rank, so that nothing is scaled.
    """
    from vbfmt import storage
    from vbfmt.cli.show import note, size, weight_of
    from vbfmt.converters import WRITERS, runtimes
    from vbfmt.packed import load

    if not force:
        storage.require_absent(output)
    writer = WRITERS[to]
    if base and not writer.wants_base:
        raise click.UsageError(f"--base is not for --to {to}")
    adapter = load(file)
    if check:
        for finding in runtimes.require_loadable(adapter, check, drop_extras=drop_extras):
            note(str(finding))
    options = {"base": base} if writer.wants_base else {}
    writer.write(adapter, output, dtype=dtype, drop_extras=drop_extras, overwrite=force, **options)
    if adapter.tensors:
        names = ", ".join(list(adapter.tensors)[:3]) + (", …" if len(adapter.tensors) > 3 else "")
        done = "left out" if drop_extras else "kept, which vLLM and llama.cpp refuse: --drop-extras"
        note(f"{len(adapter.tensors)} other trained tensors ({names}) {done}")
    if not adapter.base_model:
        note("the checkpoint names no base model; some runtimes want base_model_name_or_path")
    rank = max(module.rank for module in adapter)
    click.echo(
        f"{output}: {writer.what} of rank {rank} in {dtype}, {len(adapter)} modules, "
        f"{size(weight_of(output))}"
    )
