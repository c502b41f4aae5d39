"""The files of a base model's folder: their names, and tensors in and out of them.

    manifest.json                      name, bits, preprocess, constants, provenance, sha256 of every file
    towers/                            open_clip's local-dir format, or a torchvision backbone; may be absent
    projection-<modality>.safetensors  where a tower needs one
    head.safetensors                   weight, bias, mean.<modality>
    calibration-<modality>.safetensors features, mean and sd (float16) wherever a hook is called
    reference-<modality>.safetensors   clean queries, for drift
    memory-<modality>.safetensors      targets of some training pairs; their pictures or vectors
    memory-text.json                   their texts
    fusion.safetensors                 what image features go through behind the tower, where there is one
    expected-<modality>.safetensors    average precision to expect of such queries without labels, if measured
    vocabulary.json                    words of the training texts, with counts

The sd is stored, not the mean square: in float16 a difference of large squares would cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.errors import ArtifactError

Arrays = dict[str, NDArray[Any]]
KIND = "base"
TOWERS = "towers"
HEAD = "head.safetensors"
TEXTS = "memory-text.json"
VOCABULARY = "vocabulary.json"
FUSION = "fusion.safetensors"


def of_modality(part: str, modality: str) -> str:
    """The name of a part that every modality has its own of."""
    return f"{part}-{modality}.safetensors"


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Equal arrays give equal bytes."""
    # safetensors writes the memory as it lies: a transposed array would come back scrambled.
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)


def read_arrays(path: Path) -> Arrays:
    """What `save_arrays` wrote. Raises ArtifactError."""
    try:
        arrays: Arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; build the base again") from error
    return arrays
