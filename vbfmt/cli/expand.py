"""``vbfmt expand``: a packed file → a standard LoRA folder."""

from __future__ import annotations

import click


@click.command("expand")
@click.argument("file", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the factors.",
)
@click.option("--drop-extras", is_flag=True, help="Leave out trained biases and heads.")
@click.option("--force", is_flag=True, help="Replace the files of an existing folder.")
def command(file: str, output: str, dtype: str, drop_extras: bool, force: bool) -> None:
    """Expand FILE into a standard LoRA folder for PEFT, vLLM and llama.cpp's converter.

    The factors are exact; alpha equals the rank, so that nothing is scaled.
    """
    from vbfmt import storage
    from vbfmt.cli.show import note, size, weight_of
    from vbfmt.converters import lora
    from vbfmt.packed import load

    if not force:
        storage.require_absent(output)
    adapter = load(file)
    lora.write(adapter, output, dtype=dtype, drop_extras=drop_extras, overwrite=force)
    if adapter.tensors:
        names = ", ".join(list(adapter.tensors)[:3]) + (", …" if len(adapter.tensors) > 3 else "")
        done = "left out" if drop_extras else "kept, which vLLM and llama.cpp refuse: --drop-extras"
        note(f"{len(adapter.tensors)} other trained tensors ({names}) {done}")
    if not adapter.base_model:
        note("the checkpoint names no base model; some runtimes want base_model_name_or_path")
    rank = max(module.rank for module in adapter)
    click.echo(
        f"{output}: LoRA of rank {rank} in {dtype}, {len(adapter)} modules, "
        f"{size(weight_of(output))}"
    )
