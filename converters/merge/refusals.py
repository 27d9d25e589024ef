"""Check whether a merge must be refused. Each check raises SourceError or TargetError."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from vbfmt._files import parents, storage
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge import config, record
from vbfmt.converters.merge.arithmetic import FLOATS
from vbfmt.converters.merge.base import CONFIG, Base, in_a_layer
from vbfmt.converters.merge.paths import within
from vbfmt.errors import SourceError, StorageError, TargetError
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_QUANTIZED_CONFIGS = ("quantize_config.json", "quant_config.json", "quantization_config.json")
_QUANTIZED_TENSORS = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_scale(_inv)?|scale_weight|weight_packed|W_q"
    r"|weight\.(absmax|quant_map|nested_absmax|quant_state\..*))$"
)
_ADVICE = "merge into the base in full precision, then quantize the result"
_ADAPTER = "adapter_config.json"
_TIE = "tie_word_embeddings"
_WITHOUT_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's task types whose models have no output head over the vocabulary."""


def require_plain_model(base: Base) -> None:
    """Refuse a base that is quantized, or whose folder also holds an adapter.

    Raises:
        SourceError: the base is quantized, or an adapter was found.
    """
    if _ADAPTER in base.side_files:
        raise SourceError(
            "the base folder holds an adapter, which transformers would load on top",
            file=base.path,
            found=_ADAPTER,
            expected="a model without adapters",
        )
    reason = _quantization(base)
    if reason:
        raise SourceError("the base is quantized", file=base.path, found=reason, advice=_ADVICE)


def require_float(name: str, weight: Tensor, base: Base) -> None:
    """Refuse to change a tensor that is not floating-point.

    Raises:
        SourceError: the tensor is not floating-point.
    """
    if weight.dtype not in FLOATS:
        raise SourceError(
            "the base is quantized" if weight.dtype != "BOOL" else "the tensor is not a weight",
            file=base.path,
            part=name,
            found=weight.dtype,
            expected=", ".join(FLOATS),
            advice=_ADVICE,
        )


def require_not_merged_before(base: Base, digests: Collection[str]) -> None:
    """Refuse a base into which one of the adapters was merged before.

    Raises:
        SourceError: an adapter was merged before. The message has its digest.
    """
    before = set(record.earlier_digests(base))
    for digest in digests:
        if digest in before:
            raise SourceError(
                "this adapter was merged into the base already",
                file=base.path,
                found=digest,
                advice="give the model that the adapter was trained on",
            )


def require_untied(
    base: Base,
    name: str,
    trained: Tensor,
    adapter: LowRank,
    *,
    added: bool,
    tied: Callable[[], Collection[str] | None],
) -> None:
    """Refuse to change one of two tied tensors: the embedding and the output head.

    Both have the shape (vocabulary, hidden) and are outside numbered layers. If the config has a
    setting for tying, it decides. Most configs have none. Then transformers ties them by default,
    so they count as tied unless the base holds two different tensors. A classifier has no output
    head that could be tied.

    Args:
        base: the base model.
        name: the tensor's name in the base, or in the output if it is added.
        trained: the trained tensor that replaces it, or the base's own tensor if a module changes
            it. Only its shape is used.
        adapter: the adapter. Its task type shows whether there is an output head.
        added: whether the base lacks the tensor.
        tied: a function that returns the names of all tied tensors, or None if transformers does
            not know them.

    Raises:
        SourceError: the tensor is tied to another.
    """
    configured = setting(base.config, _TIE)
    if configured is False or not _is_vocabulary(base, name, trained.shape):
        return
    if config.task_type(adapter) in _WITHOUT_HEAD and not setting(
        base.config, "is_encoder_decoder"
    ):
        return
    other = _another(_of_shape(base, trained.shape), name)
    partner = (
        other if added else _another(base.equal_to(name) if name in base.tensors else (), name)
    )
    if added and not other:
        return
    if not configured and other and not partner:
        return
    known = tied()
    if known is not None and name not in known:
        return
    raise _tied(base, name, partner)


def require_untied_modules(base: Base, adapter: LowRank) -> None:
    """Refuse a module that is an output head if the base holds only the embedding tied to it.

    Raises:
        SourceError: there is such a module.
    """
    if setting(base.config, _TIE) is False:
        return
    weights = (name for name in base.tensors if name.endswith(".weight"))
    leaves = {name.removesuffix(".weight").rpartition(".")[2] for name in weights}
    for module in adapter.modules:
        shape = (module.out_features, module.in_features)
        embedding = _another(_of_shape(base, shape), module.name)
        there = module.name.rpartition(".")[2] in leaves
        if embedding and not there and _is_vocabulary(base, module.name, shape):
            raise _tied(base, module.name, embedding)


def _is_vocabulary(base: Base, name: str, shape: tuple[int, ...]) -> bool:
    return (
        not in_a_layer(name) and len(shape) == 2 and shape[0] == setting(base.config, "vocab_size")
    )


def _of_shape(base: Base, shape: tuple[int, ...]) -> Sequence[str]:
    """Return the names of the base's embeddings and heads with this shape.

    There are none if the first dimension is not the size of the vocabulary.
    """
    if len(shape) != 2 or shape[0] != setting(base.config, "vocab_size"):
        return ()
    return base.outside_layers.get(shape, ())


def _another(names: Sequence[str], name: str) -> str | None:
    """Return the first of `names` that is not `name`."""
    return next((other for other in names[:2] if other != name), None)


def _tied(base: Base, name: str, partner: str | None) -> SourceError:
    tied = setting(base.config, _TIE)
    return SourceError(
        "the adapter changes one of two tied tensors",
        file=base.path,
        part=name,
        found=f"tied to {partner}" if partner else f"{'' if tied else 'no '}{_TIE} in {CONFIG}",
        expected="a base whose embedding and output head are separate tensors",
        advice=f"untie the base first (save it with both tensors, {_TIE} false)",
    )


def is_transposed(module: Module, name: str, weight: Tensor, base: Base) -> bool | None:
    """Return whether a weight is stored as (in, out), or None if it is square.

    Raises:
        SourceError: the weight's shape is neither (out, in) nor (in, out) of the module.
    """
    shape = (module.out_features, module.in_features)
    if weight.shape not in (shape, shape[::-1]):
        expected = shape[::-1] if module.fan_in_fan_out else shape
        raise SourceError(
            "the adapter does not fit the base",
            file=base.path,
            part=name,
            found=list(weight.shape),
            expected=list(expected),
            advice="is this the base that the adapter was trained on?",
        )
    return None if shape[0] == shape[1] else weight.shape != shape


def orientations(weights: Mapping[Module, tuple[str, Tensor]], base: Base) -> dict[Module, bool]:
    """Return for each module whether its weight is stored as (in, out), as in transformers' Conv1D.

    For weights that are not square, the shape decides. For square weights, `fan_in_fan_out`
    decides. But PEFT saves only one value for all modules, that of the last module that it adapted.
    So if the shape of any weight contradicts it, it is not used for square weights either.

    Raises:
        SourceError: a weight does not fit its module, or the orientation of a square weight is
            unknown.
    """
    seen = {m: is_transposed(m, name, weight, base) for m, (name, weight) in weights.items()}
    wrong = next((m for m, way in seen.items() if way not in (None, m.fan_in_fan_out)), None)
    square = next((m for m, way in seen.items() if way is None), None)
    if wrong is not None and square is not None:
        raise SourceError(
            "cannot determine whether a square weight is stored as (in, out) or (out, in)",
            file=base.path,
            part=weights[square][0],
            found=f"{weights[wrong][0]} contradicts the adapter's fan_in_fan_out",
            advice="correct fan_in_fan_out in the checkpoint's adapter_config.json, then pack it",
        )
    return {m: m.fan_in_fan_out if way is None else way for m, way in seen.items()}


def require_output(output: str, base: str, *, overwrite: bool) -> None:
    """Refuse an output path inside the base, or one that exists and must not be replaced.

    Args:
        output: the path of the folder to write.
        base: the base's folder.
        overwrite: accept the output of an earlier merge, which will be replaced.

    Raises:
        OutputExistsError: the path exists, and `overwrite` is not set.
        TargetError: the path is inside the base, contains it, is a mount point, or is not the
            output of an earlier merge.
        StorageError: no existing parent folder can be written to.
    """
    inner = os.path.realpath(output)
    if within(inner, base):
        raise TargetError(
            "the output would be inside the base's folder",
            part=os.fspath(output),
            advice="choose a folder outside it",
        )
    if os.path.ismount(inner):
        raise TargetError(
            "a mount point cannot be replaced",
            file=output,
            advice="choose a folder below it",
        )
    parents.nearest(output)
    if not overwrite:
        storage.require_absent(output)
        return
    if not os.path.lexists(output) or (os.path.isdir(output) and not os.listdir(output)):
        return
    unrecorded = record.unrecorded_in(output) if os.path.isdir(output) else "a file"
    if unrecorded:
        raise TargetError(
            "not the output of an earlier merge, so it is not replaced",
            file=output,
            found=unrecorded,
            advice="choose another name, or remove it yourself",
        )
    if within(base, inner):
        raise TargetError("the base is inside the output", file=output, found=base)


def require_readable(paths: Iterable[str]) -> None:
    """Refuse files that cannot be opened.

    Raises:
        StorageError: a file cannot be opened.
    """
    for path in paths:
        with storage.refusing("cannot read", path):
            # O_NONBLOCK: opening a named pipe would wait for a writer.
            os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))


def require_space(output: str, size: int) -> None:
    """Refuse an output of `size` bytes if the disk does not have enough space.

    Raises:
        StorageError: there is not enough space.
    """
    free = shutil.disk_usage(parents.nearest(output)).free
    if free < size:
        raise StorageError(
            "not enough space on the disk",
            file=output,
            found=f"{free} bytes free",
            expected=f"{size} bytes",
        )


def _quantization(base: Base) -> str | None:
    for level in _levels(base.config):
        about = level.get("quantization_config") or level.get("compression_config")
        if about:
            method = about.get("quant_method") if isinstance(about, Mapping) else None
            return f"quantization_config{f' ({method})' if method else ''} in {CONFIG}"
    names: Iterable[str] = chain(base.side_files, base.tensors)
    configs = (n for n in names if n in _QUANTIZED_CONFIGS or _QUANTIZED_TENSORS.search(n))
    stored = (f"{n} in {t.dtype}" for n, t in base.tensors.items() if _is_packed(n, t))
    return next(chain(configs, stored), None)


def _is_packed(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor's dtype shows that the base is quantized.

    All tensors are checked, even those that the adapter does not change, because a model in full
    precision has no 8-bit weights. It may have an 8-bit mask, but a mask is not a weight.
    """
    bytes_for_a_weight = tensor.dtype in ("I8", "U8") and name.endswith(".weight")
    return tensor.dtype.startswith("F8") or (bytes_for_a_weight and len(tensor.shape) == 2)


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of a config, or of the language model's config nested in it."""
    inner = config.get("text_config")
    return config.get(key, inner.get(key) if isinstance(inner, Mapping) else None)


def _levels(config: Mapping[str, object]) -> Iterable[Mapping[str, object]]:
    yield config
    yield from (value for value in config.values() if isinstance(value, Mapping))
