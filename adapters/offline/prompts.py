"""TPSNet, stage 1: one learnt prompt for every (domain, cluster), by contrast with its pictures.

    prompt_{d,c} = "an image of a" X_{d,c,1..M} "."      t_{d,c} = norm(text tower(prompt))      only X trains
    loss = i2t + t2i      i2t: which prompt belongs to a picture      t2i: which pictures belong to a prompt

Reference: TPSNet, arXiv 2603.12711 (losses second-hand, in the form of CLIP-ReID, AAAI 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from adapters.offline.assignment import sinkhorn

Repair = Literal["sinkhorn", "gate", "argmax", "none"]
SURE = 0.8  # probability from which the gate renames a picture
DEVIATION = 0.02  # of the first context vectors, CLIP-ReID's


@dataclass(frozen=True, slots=True)
class Template:
    """Where the learnt vectors stand.

    Args:
        embeds: [S, E] of the whole prompt, with any word in the learnt places.
        places: of the learnt vectors.
        encode: embeddings [n, S, E] -> features [n, D], of any length; differentiable.
    """

    embeds: Tensor
    places: slice
    encode: Callable[[Tensor], Tensor]


class DomainPrompts(nn.Module):
    """Context vectors X [2, C, M, E].

    Args:
        template: of every prompt.
        classes: C.
        seed: of the first vectors.
    """

    def __init__(self, template: Template, classes: int, seed: int) -> None:
        super().__init__()
        self._template = template
        length = template.places.stop - template.places.start
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, classes, length, template.embeds.shape[1], generator=draw)
        self.context = nn.Parameter(DEVIATION * drawn)

    def forward(self, domain: int) -> Tensor:
        """Unit text features [C, D] of a domain."""
        context, places = self.context[domain], self._template.places
        whole = self._template.embeds.expand(len(context), -1, -1)
        embeds = torch.cat((whole[:, : places.start], context, whole[:, places.stop :]), 1)
        return normalize(self._template.encode(embeds), dim=1)

    @torch.no_grad()
    def texts(self) -> Tensor:
        """[2, C, D] of both domains."""
        return torch.stack([self(d) for d in range(2)])


def loss_i2t(v: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    """- mean_i log softmax_c(v_i t_c / temperature)[y_i]; v [B, D] and t [C, D] unit, y [B]."""
    return cross_entropy(v @ t.T / temperature, y)


def loss_t2i(v: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
    """- mean over present classes c, over their pictures p, of log softmax_a(v_a t_c / temperature)[p].

    Classes without a picture in the batch have no part in it.
    """
    log_share = (t @ v.T / temperature).log_softmax(1)  # [C, B]
    member = nn.functional.one_hot(y, len(t)).T.to(v.dtype)
    count = member.sum(1)
    own = (log_share * member).sum(1) / count.clamp_min(1)
    return -own[count > 0].mean()


def repaired(similarity: Tensor, y: Tensor, mode: Repair, temperature: float) -> Tensor:
    """New labels [n] from similarities [n, C] of pictures to prompts; no class loses its last picture.

    "argmax" is the literal reading of the paper's re-pairing and collapses on a badly placed domain;
    "gate" renames pictures whose best prompt has a probability above .8; "sinkhorn" keeps the class shares.
    """
    classes = similarity.shape[1]
    if mode == "none":
        return y
    if mode == "sinkhorn":
        share = torch.bincount(y, minlength=classes).to(similarity.dtype) / len(y)
        found = sinkhorn(similarity, share).argmax(1)
    else:
        sure, found = (similarity / temperature).softmax(1).max(1)
        if mode == "gate":
            found = torch.where(sure > SURE, found, y)
    while True:  # giving a class its pictures back can take the last one of another
        lost = torch.bincount(found, minlength=classes)[y] == 0
        if not lost.any():
            return found
        found = torch.where(lost, y, found)


@dataclass(frozen=True, slots=True)
class Prompted:
    """Context [2, C, M, E], unit text features [2, C, D], labels [n] of each domain, mean loss per epoch."""

    context: Tensor
    text: Tensor
    labels: tuple[Tensor, Tensor]
    losses: tuple[float, ...]


def fit_prompts(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    template: Template,
    classes: int,
    *,
    epochs: int,
    batch: int,
    rate: float,
    temperature: float,
    repair: Repair,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Prompted:
    """Trains the context; from a third of the epochs on, labels are repaired once per epoch.

    Args:
        features: of the two domains, unit [n_d, D].
        labels: their clusters [n_d] in 0..C-1.
        template, classes: of the prompts.
        epochs, batch, rate, temperature, repair, seed: see `TpsConfig`.
        progress: called with the epochs done.
    """
    prompts = DomainPrompts(template, classes, seed)
    optimizer = torch.optim.Adam(prompts.parameters(), rate)
    draw = torch.Generator().manual_seed(seed)
    steps = sum(-(-len(v) // batch) for v in features)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps))
    new, losses = [y.clone() for y in labels], []
    for epoch in range(epochs):
        if 3 * epoch >= epochs:
            new = _all_repaired(features, labels, prompts.texts(), repair, temperature)
        total = 0.0
        for d, rows in _parts(features, batch, draw):
            v, t = features[d][rows], prompts(d)
            loss = loss_i2t(v, t, new[d][rows], temperature) + loss_t2i(v, t, labels[d][rows], temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / steps)
        progress(epoch + 1)
    text = prompts.texts()
    final = _all_repaired(features, labels, text, repair, temperature)
    return Prompted(prompts.context.detach(), text, (final[0], final[1]), tuple(losses))


def _parts(features: Sequence[Tensor], batch: int, draw: torch.Generator) -> list[tuple[int, Tensor]]:
    """(domain, rows) of an epoch: every picture once, batches of both domains in random order."""
    parts = [
        (d, rows)
        for d, v in enumerate(features)
        for rows in torch.randperm(len(v), generator=draw).tensor_split(-(-len(v) // batch))
    ]
    return [parts[place] for place in torch.randperm(len(parts), generator=draw).tolist()]


def _all_repaired(
    features: Sequence[Tensor], labels: Sequence[Tensor], texts: Tensor, repair: Repair, temperature: float
) -> list[Tensor]:
    return [repaired(v @ t.T, y, repair, temperature) for v, t, y in zip(features, texts, labels)]
