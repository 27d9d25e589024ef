"""The model architectures whose LoRA can be written as GGUF.

Names of tensors come from the ``gguf`` package (gguf-py/gguf/tensor_mapping.py). This table adds
what that package lacks: which GGUF architecture a transformers class becomes, and in which
architectures llama.cpp reorders the rows of q and k for its rotary embedding (conversion/*.py,
``undo_permute`` and ``permute``). The source is llama.cpp as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: value of ``general.architecture``.
        classes: names of the transformers classes that become this architecture.
        permuted: last components of the names of modules whose output rows are reordered per head.
        source: the source file of llama.cpp that shows this.
    """

    name: str
    classes: tuple[str, ...]
    permuted: tuple[str, ...]
    source: str


_Q_AND_K = ("q_proj", "k_proj")

ARCHITECTURES = (
    Architecture(
        "llama", ("LlamaForCausalLM", "MistralForCausalLM"), _Q_AND_K, "conversion/llama.py"
    ),
    Architecture("smollm3", ("SmolLM3ForCausalLM",), _Q_AND_K, "conversion/llama.py"),
    Architecture("granite", ("GraniteForCausalLM",), _Q_AND_K, "conversion/granite.py"),
    Architecture("olmo", ("OlmoForCausalLM",), _Q_AND_K, "conversion/olmo.py"),
    Architecture("olmo2", ("Olmo2ForCausalLM", "Olmo3ForCausalLM"), (), "conversion/olmo.py"),
    Architecture("qwen2", ("Qwen2ForCausalLM",), (), "conversion/qwen.py"),
    Architecture("qwen3", ("Qwen3ForCausalLM",), (), "conversion/qwen.py"),
    Architecture("gemma", ("GemmaForCausalLM",), (), "conversion/gemma.py"),
    Architecture("gemma2", ("Gemma2ForCausalLM",), (), "conversion/gemma.py"),
    Architecture("gemma3", ("Gemma3ForCausalLM",), (), "conversion/gemma.py"),
    Architecture("phi3", ("Phi3ForCausalLM",), (), "conversion/phi.py"),
    Architecture("gpt2", ("GPT2LMHeadModel",), (), "conversion/gpt2.py"),
    Architecture("starcoder2", ("Starcoder2ForCausalLM",), (), "conversion/starcoder.py"),
)

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
BY_CLASS = {name: architecture for architecture in ARCHITECTURES for name in architecture.classes}
