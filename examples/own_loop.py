"""A torch model of one's own adapts in a loop of one's own: no Kafka, no folders.

The weights are random and the pictures are drawn: this shows how it is done, not how well it works.

Run: python own_loop.py
"""

import torch
import torchvision

import qshift

ITEMS, SIDE, SIZE = 200, 64, 64


def draw(seed: int) -> torch.Tensor:
    """A blurred pattern of colours for each item: [ITEMS, 3, SIDE, SIDE], 0 to 1."""
    noise = torch.rand(ITEMS, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=SIDE, mode="bicubic").clamp(0, 1)


def taken_again(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures + 0.15 * torch.randn(pictures.shape)).clamp(0, 1)


def preprocess(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures - 0.45) / 0.22


def white(pictures: torch.Tensor) -> torch.Tensor:
    return pictures


def yellow(pictures: torch.Tensor) -> torch.Tensor:
    """The shift: another light."""
    return pictures * torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)


def main() -> int:
    torch.manual_seed(0)
    pictures, names = draw(0), [f"item {number}" for number in range(ITEMS)]
    model = torchvision.models.resnet18(weights=None).eval()
    model.fc = torch.nn.Identity()  # the trunk; of open_clip take model.visual
    with torch.no_grad():
        features = model(preprocess(pictures))
    clean = preprocess(taken_again(pictures[:128]))

    session = qshift.Session.of(model, gallery=features, names=names, clean=clean)
    gained = 0
    for number in range(6):
        light = white if number < 2 else yellow
        truth = torch.randint(ITEMS, (SIZE,)).tolist()
        answer = session.answer(preprocess(light(taken_again(pictures[truth]))))  # changes nothing
        session.learn(answer)  # answer first, learn second
        frozen, served = (
            sum(found[0] == names[item] for found, item in zip(twin.items, truth))
            for twin in (answer.frozen, answer.served)
        )
        gained += served - frozen
        print(f"{light.__name__:>6}  right of {SIZE}: frozen {frozen:2}, served {served:2}")
    return gained


if __name__ == "__main__":
    main()
