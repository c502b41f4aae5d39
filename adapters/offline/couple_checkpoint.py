"""A fit of COUPLE that was stopped goes on: parameters, optimiser and trust at the end of an epoch."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.offline.couple_results import Losses, Report, Trust
from adapters.offline.couple_steps import Steps
from adapters.offline.relation_pairs import Pairs
from core.artifacts import MANIFEST, read_manifest, tensors_hash, writing
from core.errors import ConfigError

KIND = "COUPLE checkpoint"
TENSORS = "state.safetensors"


@dataclass(slots=True)
class Done:
    """What a fit has behind it, beside its parameters."""

    trust: Trust | None = None
    losses: list[Losses] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)


class Checkpoint:
    """In a folder, of one fit: of the same rows, head and settings.

    Args:
        folder: None keeps nothing.
        steps: before the first of them.
    """

    def __init__(self, folder: Path | None, steps: Steps) -> None:
        self._folder, self._steps = folder, steps
        self._identity = "" if folder is None else _identity(steps)

    def save(self, done: Done) -> None:
        """The first process alone writes."""
        if self._folder is None or self._steps.coder.team.rank:
            return
        tensors = {f"model/{name}": tensor for name, tensor in self._steps.coder.model.state_dict().items()}
        for index, state in self._steps.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(v) for name, v in state.items()}
        if (trust := done.trust) is not None:
            arrays = (trust.pseudo, trust.scores, trust.chosen, *astuple(trust.intra), *astuple(trust.inter))
            tensors |= {f"trust/{place}": torch.from_numpy(v) for place, v in enumerate(arrays)}
        told = {"losses": [astuple(v) for v in done.losses], "reports": [astuple(v) for v in done.reports]}
        with writing(self._folder, KIND, {"identity": self._identity, **told}) as draft:
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, draft / TENSORS)

    def restored(self) -> Done:
        """What `save` wrote last, parameters and optimiser set to it; nothing where there is none.

        Raises:
            ConfigError: it is of another fit.
            ArtifactError: it is damaged.
        """
        if self._folder is None or not (self._folder / MANIFEST).exists():
            return Done()
        manifest = read_manifest(self._folder, KIND)
        if manifest["identity"] != self._identity:
            raise ConfigError(
                f"{self._folder} holds a fit of other rows, another head or other settings than those given: "
                "delete it to start anew, or name another folder"
            )
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "adam": {}, "trust": {}}
        for name, tensor in load_file(self._folder / TENSORS).items():
            kind, rest = name.split("/", 1)
            parts[kind][rest] = tensor
        self._set(parts["model"], parts["adam"])
        losses, reports = [Losses(*v) for v in manifest["losses"]], [Report(*v) for v in manifest["reports"]]
        return Done(_trust(parts["trust"]), losses, reports)

    def _set(self, model: dict[str, Tensor], adam: dict[str, Tensor]) -> None:
        self._steps.coder.model.load_state_dict(model)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in adam.items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer = self._steps.optimizer
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _trust(tensors: dict[str, Tensor]) -> Trust | None:
    a = [tensors[str(place)].numpy() for place in range(len(tensors))]
    return Trust(a[0], a[1], a[2], Pairs(*a[3:6]), Pairs(*a[6:9])) if a else None


def _identity(steps: Steps) -> str:
    """Of everything a fit depends on."""
    data, model = steps.data, steps.coder.model
    state = {f"model/{name}": tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    everything = {"source": data.source, "y": data.y, "target": data.target, **state}
    return tensors_hash(everything, asdict(steps.config))
