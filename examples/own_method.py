"""A method of one's own: what queries have in common beyond their neighbours is taken off them.

Run: python own_method.py BASE GALLERY QUERIES.jsonl   (a line each: {"vector": [...]} or {"text": "..."})
Then compare it with all others: `qshift replay queries` with `--method own_method:RunningMean`.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import normalize

import qshift


class RunningMean:
    learns_first = False

    def __init__(self, source, constants, config, floor):  # gradient methods start from `source`
        self.name, self.version, self.offset = "running mean", 0, torch.zeros(())

    def parameters(self):
        return {}  # tensors to encode with; {}: the encoder as it is

    def transform(self, features, batch):
        return normalize(features - self.offset.to(features), dim=1)

    def update(self, batch):
        rows = batch.source[batch.mask]
        beside = batch.neighbours(self.transform(rows, batch)).mean(1)
        self.offset = 0.9 * self.offset.to(rows) + 0.1 * (rows - beside).mean(0)
        self.version += 1
        return qshift.AdaptationStep(True, diagnostics={"offset": float(self.offset.norm())}), None

    def snapshot(self):
        return {"offset": self.offset.cpu().numpy()}, {"version": self.version}

    def restore(self, tensors, meta):
        self.offset, self.version = torch.from_numpy(tensors["offset"]), meta["version"]


def main(base, gallery, queries):
    asked = [next(iter(json.loads(line).values())) for line in Path(queries).read_text().splitlines()]
    session = qshift.Session(base, gallery, method="own_method:RunningMean")
    for start in range(0, len(asked), 64):
        answer = session.answer(asked[start : start + 64])
        step = session.learn(answer)
        same = sum(a[0] == b[0] for a, b in zip(answer.served.items, answer.frozen.items))
        print(f"{same} of {len(answer.served.items)} first answers as frozen {dict(step.diagnostics)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
