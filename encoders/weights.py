"""Weight files of others: read without executing anything in them, and written in float32.

What people save is a state dict, or one wrapped by a training loop, or by DDP or `torch.compile`: here it
comes out as names and tensors. Files are mapped, not copied: a model takes its own bytes and not twice those.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.errors import ArtifactError, ConfigError
from core.readers.places import shown

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training loops keep the state of the model."""
PREFIXES = ("module.", "_orig_mod.")
"""Of DDP and of `torch.compile`."""
SIZES = frozenset(("input_resolution", "context_length", "vocab_size"))
"""Numbers that OpenAI's files hold beside the weights."""
KINDS = {
    torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
SHOWN = 3


def state_of(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file, as they are: float16 stays float16.

    Args:
        path: .safetensors, .npz, or what `torch.save` has written (.pt, .pth, .bin, .ckpt), which is read
            with `weights_only=True`.

    Raises:
        ConfigError: another ending.
        ArtifactError: not there, damaged, more than tensors in it, or no tensor at all.
    """
    if path.suffix not in (".safetensors", ".npz", *PICKLED):
        raise ConfigError(f"{shown(path)}: expected .safetensors, .npz or .pth (.pt, .bin, .ckpt)")
    state = _unwrapped(_loaded(path))
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if not state:
        raise ArtifactError(f"weights {shown(path)} hold no tensors by name: save the model's state_dict()")
    return state


def write_float32(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes .safetensors, all that is no whole number as float32: a tensor at a time, whatever their sum.

    Raises:
        ArtifactError: a kind of tensor that no model of ours has.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in sorted(state.items()):
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        if kind not in KINDS:
            raise ArtifactError(f"the weight {name} is of {kind}: expected float or whole numbers")
        size = tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": KINDS[kind], "shape": list(tensor.shape), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(state.items()):
            whole = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
            file.write(whole.contiguous().flatten().view(torch.uint8).numpy().data)


def misfit(error: BaseException) -> str:
    """What `load_state_dict` says, in a line: it lists hundreds of names."""
    text = str(error)
    found = []
    for start, what in (("Missing", "are missing"), ("Unexpected", "are not of this model")):
        listed = re.search(rf'{start} key\(s\) in state_dict: ((?:"[^"]*"(?:, )?)+)', text)
        if listed:
            found.append(_some(re.findall(r'"([^"]*)"', listed.group(1)), what))
    sizes = re.findall(r"size mismatch for ([^:]+): .*?Size\((\[[^]]*\]).*?Size\((\[[^]]*\])", text)
    if sizes:
        name, given, wanted = sizes[0]
        more = f", and of {len(sizes) - 1} more" if len(sizes) > 1 else ""
        found.append(f"size mismatch for {name}: {given} in the weights, {wanted} in the model{more}")
    return "; ".join(found) or text.strip().split("\n")[0][:300]


def _some(names: list[str], what: str) -> str:
    first = ", ".join(names[:SHOWN])
    return f"{len(names)} of the names {what} ({first}{', ...' if len(names) > SHOWN else ''})"


def _loaded(path: Path) -> object:
    try:
        match path.suffix:
            case ".safetensors":
                return load_file(path)
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            case _:
                return _pickled(path)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"weights {shown(path)} cannot be read: they hold more than tensors, which would have to be "
            "executed; load them where you trust them and save the model's state_dict() alone"
        ) from error
    except SafetensorError as error:
        raise ArtifactError(f"weights {shown(path)} cannot be read: {error}; copy the file again") from error
    except Exception as error:  # a damaged .pth raises whatever its bytes happen to spell
        reason = str(error).split("\n")[0][:200]
        if "TorchScript" in reason:
            raise ArtifactError(
                f"weights {shown(path)} cannot be read: they are a TorchScript archive; save "
                "torch.jit.load(FILE).state_dict() with torch.save and give that"
            ) from error
        raise ArtifactError(f"weights {shown(path)} cannot be read: {reason}; copy the file again") from error


def _pickled(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other protocols: what cannot be read is an error
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files of before torch 1.6 cannot be mapped
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(loaded: object) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        return {}
    return {
        name: value
        for name, value in loaded.items()
        if isinstance(name, str) and isinstance(value, Tensor) and name not in SIZES
    }
