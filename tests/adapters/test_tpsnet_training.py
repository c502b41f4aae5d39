"""Stage 2 of TPSNet by plain loops: loss, prototypes, batch statistics, and one index for both domains."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adapters.offline.assignment import matched
from adapters.offline.prompts import Template
from adapters.offline.tpsnet import Clusters, TpsNet, cluster, fit
from adapters.offline.tpsnet_config import TpsConfig

CLASSES, ROWS, WIDTH = 3, 12, 8
STILL = 1e-12  # a rate that moves nothing
CONFIG = TpsConfig(
    classes=CLASSES, epochs=1, batch=2 * ROWS, rate=STILL, temperature=0.4, smoothing=0.3,
    prototype_weight=0.7, text_weight=1.9,
)  # fmt: skip


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features() -> list[Tensor]:
    return [draws(ROWS, WIDTH, seed=1), draws(ROWS, WIDTH, seed=2)]


def clusters(tied: bool = True) -> Clusters:
    text = normalize(draws(2, CLASSES, WIDTH, seed=3), dim=2)
    return Clusters((torch.arange(ROWS) % CLASSES, torch.arange(ROWS) // 4), text, (), tied=tied)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(WIDTH, WIDTH)

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        return normalize(raw + self.last(raw), dim=1)


def embedded(net: Net) -> list[Tensor]:
    with torch.no_grad():
        return [net.fuse(v, None) for v in features()]


def log_shares(v: Tensor, among: Tensor) -> list[float]:
    scores = [float(v @ row) / CONFIG.temperature for row in among]
    total = math.log(sum(math.exp(score) for score in scores))
    return [score - total for score in scores]


def class_mean(rows: list[Tensor], labels: tuple[Tensor, Tensor], c: int) -> Tensor:
    """Over the members of both domains."""
    own = [v for d in range(2) for v, y in zip(rows[d], labels[d]) if y == c]
    return torch.stack(own).mean(0)


def start(labels: tuple[Tensor, Tensor]) -> Tensor:
    rows = embedded(Net())
    return torch.stack([normalize(class_mean(rows, labels, c), dim=0) for c in range(CLASSES)])


def slow_loss(config: TpsConfig) -> float:
    """Of the untrained network, over all rows of both domains."""
    given, rows = clusters(), embedded(Net())
    prototypes, total = start(given.labels), 0.0
    for d in range(2):
        for v, y in zip(rows[d], given.labels[d]):
            total -= config.prototype_weight * log_shares(v, prototypes)[int(y)]
            shares = log_shares(v, given.text[d])
            for c in range(CLASSES):
                sigma = (1 - config.smoothing) * (c == int(y)) + config.smoothing / CLASSES
                total -= config.text_weight * sigma * shares[c]
    return total / (2 * ROWS)


@pytest.mark.parametrize("changes", [{}, {"text_weight": 0.0}, {"prototype_weight": 0.0}, {"smoothing": 0.0}])
def test_loss_equals_loops(changes: dict[str, float]) -> None:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    found = fit(features(), None, clusters(), Net(), config)
    assert found.losses == pytest.approx([slow_loss(config)], rel=1e-5)


def test_prototypes_follow_the_class_means_by_momentum() -> None:
    given, net = clusters(), Net()
    found = fit(features(), None, given, net, replace(CONFIG, rate=0.05, momentum=0.6))
    rows, before = embedded(net), start(given.labels)
    for c in range(CLASSES):
        moved = 0.6 * before[c] + 0.4 * class_mean(rows, given.labels, c)
        assert found.prototypes[c].tolist() == pytest.approx(normalize(moved, dim=0).tolist(), abs=1e-5)
        assert not torch.allclose(found.prototypes[c], before[c], atol=1e-3)


@pytest.mark.parametrize("text", [False, True])
def test_untied_every_domain_has_prototypes_of_its_own(text: bool) -> None:
    given, rows = clusters(tied=False), embedded(Net())
    found = fit(features(), None, given, Net(), replace(CONFIG, text=text, tie="none"))
    for d in range(2):
        for c in range(CLASSES):
            own = torch.stack([v for v, y in zip(rows[d], given.labels[d]) if y == c]).mean(0)
            expected = normalize(own, dim=0)
            assert found.prototypes[d * CLASSES + c].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


class Phased(Net):
    """Adds a number of its phase image, behind a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = nn.BatchNorm2d(1)

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        assert phases is not None
        return normalize(raw + self.batch(phases).mean((1, 2, 3))[:, None] + self.last(raw), dim=1)


def fitted_with_phases(epochs: int) -> tuple[Phased, TpsNet, list[Tensor]]:
    net = Phased()
    phases = [draws(ROWS, 1, 4, 5, seed=7), 3 + 2 * draws(ROWS, 1, 4, 5, seed=8)]
    found = fit(features(), phases, clusters(), net, replace(CONFIG, epochs=epochs, rate=1e-2))
    return net, found, phases


def test_batch_statistics_are_taken_once_over_all_pictures_and_then_stay() -> None:
    net, _, phases = fitted_with_phases(epochs=3)
    mean, var = net.batch.running_mean, net.batch.running_var
    assert mean is not None and var is not None
    assert float(mean) == pytest.approx(float(torch.cat(phases).mean()), abs=1e-5)
    assert float(var) == pytest.approx(sum(float(p.var()) for p in phases) / 2, rel=1e-4)
    assert net.batch.num_batches_tracked == 2, "one batch of each domain, none while training"


def test_means_are_those_of_the_trained_network_in_eval_mode() -> None:
    net, found, phases = fitted_with_phases(epochs=2)
    net.eval()
    with torch.no_grad():
        for d in range(2):
            expected = net.fuse(features()[d], phases[d]).mean(0)
            assert found.means[d].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("seed", range(4))
def test_tied_by_prompts_labels_and_text_of_the_target_share_the_index(seed: int) -> None:
    """With argmax repair a label is the nearest prompt: also after both were put in the source's order."""
    classes = 5
    kinds = 3 * draws(classes, WIDTH, seed=10 + seed)
    x = [kinds[torch.arange(n) % classes] + 0.3 * draws(n, WIDTH, seed=n) for n in (50, 45)]
    mixture = draws(4 * 6, WIDTH, seed=4)
    template = Template(draws(4, 6, seed=5), slice(1, 3), lambda embeds: embeds.flatten(1) @ mixture)
    config = TpsConfig(
        classes=classes,
        tie="prompts",
        repair="argmax",
        prompt_epochs=10,
        batch=16,
        prompt_rate=0.05,
        seed=seed,
    )
    found = cluster(x, template, config, lambda *_: None)
    for d in range(2):
        unit = normalize(x[d], dim=1)
        centred = normalize(unit - unit.mean(0), dim=1)
        assert torch.equal(found.labels[d], (centred @ found.text[d].T).argmax(1))
    assert torch.equal(matched(found.text[0], found.text[1]), torch.arange(classes))
