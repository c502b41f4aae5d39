"""Labels that come late, in a loop of one's own: half of them measure, the other half steer.

The weights are random and the pictures are noise: this shows how it is done, not how well it works.

Run: python own_labels.py
"""

import torch

import qshift

ITEMS, SIDE, SIZE = 200, 8, 64


def taken_again(pictures: torch.Tensor) -> torch.Tensor:
    return pictures + 0.3 * torch.randn(pictures.shape)


def moved(pictures: torch.Tensor) -> torch.Tensor:
    """The shift: another exposure."""
    return 0.8 * pictures + 0.8


def main() -> float:
    torch.manual_seed(0)
    pictures, names = torch.randn(ITEMS, 3, SIDE, SIDE), [f"item {number}" for number in range(ITEMS)]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 32)).eval()
    with torch.no_grad():
        features = model(pictures)
    clean = taken_again(pictures[:128])

    config = qshift.Config(labels={"rate": 0.5, "steer": True})
    session = qshift.Session.of(model, features, names, clean=clean, config=config)
    waiting = []
    for _ in range(8):
        truth = torch.randint(ITEMS, (SIZE,)).tolist()
        answer = session.answer(moved(taken_again(pictures[truth])))
        session.learn(answer)
        waiting.append((answer, [names[item] for item in truth]))
        if len(waiting) > 2:  # labels come two batches late
            session.label(*waiting.pop(0))
    found = session.quality()
    print(f"{found.n} labels: mAP {found.map_frozen:.1f} frozen, {found.map_served:.1f} served")
    print(f"served - frozen: {found.diff:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
    return found.diff


if __name__ == "__main__":
    main()
