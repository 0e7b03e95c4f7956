"""Names of an adapter's tensors in PEFT's files, and what those files hold beside the adapter.

PEFT names modules as transformers does, with a prefix. GPT-2 has names of its own and stores its weights transposed there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model.adapters.layers import LoRAEmbedding, TiedHead
from tinyllm.model.adapters.plan import EMBEDDING, HEAD, file_name, row_of, weight_of
from tinyllm.model.hf_names import is_transposed

PREFIX = "base_model.model."


def in_file(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names, and in the layout, of PEFT's file."""
    return {PREFIX + file_name(model, name): _turned(model, name, tensor) for name, tensor in tensors.items()}


def from_file(model: nn.Module, tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return tensors of PEFT's file under the names, and in the layout, of the model; unknown ones keep their names."""
    names = names_here(model, tensors, wanted)
    return {name: _turned(model, name, tensors[theirs]) for name, theirs in names.items()}


def shapes_here(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], wanted: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in PEFT's file under the names, and in the layout, of the model."""
    names = names_here(model, shapes, wanted)
    row = row_of(model)
    return {
        name: shapes[theirs][::-1] if row and is_transposed(name, row) else shapes[theirs]
        for name, theirs in names.items()
    }


def names_here(model: nn.Module, there: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Return {name here: name in the file} of the tensors in PEFT's file."""
    ours = {file_name(model, name): name for name in (*wanted, *_of_base(model))}
    return {ours.get(name.removeprefix(PREFIX), name.removeprefix(PREFIX)): name for name in there}


def beside_the_adapter(
    model: nn.Module, there: Mapping[str, tuple[int, ...]], wanted: Collection[str], where: str
) -> dict[str, str]:
    """Return the tensors in a file that are not the adapter's own: name -> the layer whose base weight it is, or "".

    PEFT saves embedding and head of the base where they are adapted, and the factors of a head that shares the embedding's.

    Args:
        there: shapes of the file's tensors, by their names here.
        wanted: names of the adapter's own tensors.

    Raises:
        UserError: a base weight of another shape than the model's (INTEGRITY).
    """
    found = {name: layer for name, layer in _of_base(model).items() if name in there and name not in wanted}
    for name, layer in found.items():
        shape = tuple(weight_of(model, layer).shape)
        if there[name] != shape:
            what = f"it was trained on a model with {there[name][0]} tokens, and the base has {shape[0]}"
            fix = "resize the base model with the tokenizer beside the adapter, and name it with --base"
            raise UserError(what, where=where, fix=fix, code=INTEGRITY)
    if f"model.{EMBEDDING}.lora_embedding_A" in wanted and f"{HEAD}.lora_A.weight" not in wanted:
        found |= dict.fromkeys({f"{HEAD}.lora_A.weight", f"{HEAD}.lora_B.weight"} & there.keys(), "")
    return found


def of_tied_head(model: nn.Module) -> dict[str, Tensor]:
    """Return what PEFT writes for a head that shares the branch of the embedding: the same factors, transposed."""
    heads = [module for module in model.modules() if isinstance(module, TiedHead)]
    shared = [head.embedding for head in heads if isinstance(head.embedding, LoRAEmbedding)]
    found: dict[str, Tensor] = {}
    for embedding in shared:
        found[f"{HEAD}.lora_A.weight"] = embedding.lora_embedding_B.detach().T
        found[f"{HEAD}.lora_B.weight"] = embedding.lora_embedding_A.detach().T
    return found


def _of_base(model: nn.Module) -> dict[str, str]:
    """Return the names under which PEFT saves weights of the base, and the layer of each."""
    layers = [name for name, _ in model.named_modules() if name in (f"model.{EMBEDDING}", HEAD)]
    return {f"{layer}{suffix}": layer for layer in layers for suffix in (".weight", ".base_layer.weight")}


def _turned(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor with rows and columns exchanged where files store it so."""
    row = row_of(model)
    return tensor.T.contiguous() if row and is_transposed(name, row) else tensor
