"""COUPLE: a hash for a labelled source and an unlabelled target, by trust that flows over a graph of both.

    1  epochs on the source alone: L_s
    2  graph of both domains; mass poured on the source overflows along it; the targets of the highest
       potential are trusted with their pseudo-labels, and edges and random walks give pairs to mix
    3  epochs of L_s + L_t + mix_weight (L_pix + L_man), the graph renewed as features move

    z = backbone(v), or cached features      h = head(z)      code h >= 0      p = softmax(scale cos(h, e))

Reference: COUPLE (IEEE TIP 2025, arXiv 2505.13907). docs/methods/couple.md holds symbols, origins, results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from adapters.offline.couple_checkpoint import Checkpoint, Done
from adapters.offline.couple_config import CoupleConfig, alike, code_width, rows
from adapters.offline.couple_model import Coder, Data, Model
from adapters.offline.couple_results import Couple
from adapters.offline.couple_steps import Steps
from adapters.offline.couple_trust import Relations
from adapters.offline.parallel import Team
from adapters.offline.psca_config import indexed

Progress = Callable[[int, int, str], None]


def fit(
    source: ArrayLike,
    labels: ArrayLike,
    target: ArrayLike,
    head: nn.Module,
    config: CoupleConfig | None = None,
    *,
    backbone: nn.Module | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    team: Team | None = None,
) -> Couple:
    """Trains; the same inputs, configuration and thread count give the same bits, interrupted or not.

    Args:
        source: features [n_s, D], or pictures [n_s, 3, H, W] as the backbone takes them; finite.
        labels: [n_s] integers >= 0, at least two classes.
        target: [n_t, ...] likewise. Their labels are not asked for.
        head: phi, [B, D] -> [B, L]; rows of length 1 or relaxed. It is copied and stays as it is.
        config: see there.
        backbone: F, rows -> [B, D], trained along. Likewise copied. Its batch statistics stay those it came
            with: batches of one domain, of both and of mixtures alternate, and no one mean fits them all.
        progress: called with (epochs done, epochs, text).
        checkpoint: folder written at every end of an epoch, from which a later call with the same arguments
            goes on, on a disk that all processes see. It stays when all is done.
        team: this process among several that call with the same arguments.

    Raises:
        ConfigError: arguments do not fit together, the checkpoint is of another fit, the loss is not finite.
        ArtifactError: the checkpoint is damaged.
    """
    config, team = config or CoupleConfig(), team or Team()
    x_s, x_t = rows(source, "source"), rows(target, "target")
    alike(x_s, x_t, backbone is not None)
    classes, y = indexed(labels, len(x_s))
    model = Model(head, backbone, len(classes), code_width(head, backbone, x_s), config)
    team.agreed(model.state_dict().values())
    data, coder = Data(x_s, y, x_t), Coder(model, len(classes), team)
    steps, relations = Steps(data, coder, config), Relations(data, coder, config)
    kept = Checkpoint(checkpoint, steps)
    done = kept.restored()
    for epoch in range(len(done.losses), config.epochs):
        if config.renews(epoch, len(x_s) + len(x_t)):
            done.trust, report, _ = relations.trusted(epoch)
            done.reports.append(report)
        done.losses.append(steps.epoch(epoch, done.trust))
        kept.save(done)
        if progress is not None:
            progress(epoch + 1, config.epochs, "training COUPLE")
    return _finished(classes, coder, relations, done)


def _finished(classes: NDArray[Any], coder: Coder, relations: Relations, done: Done) -> Couple:
    """Trust and codes by the final parameters."""
    model, config = coder.model, relations.config
    trust, report, graph = relations.trusted(config.epochs)
    inner = None if model.backbone is None else _cpu(model.backbone)
    with torch.no_grad():
        codes = coder.codes().cpu().numpy()
    losses, reports = tuple(done.losses), (*done.reports, report)
    return Couple(config, classes, _cpu(model.head), inner, codes, trust, graph, losses, reports)


def _cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
