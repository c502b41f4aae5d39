"""Learned against mapped codes of PSCA's source items: the table of "Learned codes" in docs/methods/psca.md.

PYTHONPATH=. python tests/qshift/measure_learned_codes.py DATA [SPLITS]

The target asks the source, as in the service: codes alone, and the 100 nearest codes re-ranked by cosine.
"""

import sys
from pathlib import Path

import numpy as np

from adapters.offline.psca import fit
from adapters.offline.psca_config import PscaConfig
from index.codes import hamming, pack
from monitoring.estimates import bootstrap_interval
from qshift.benchmarks.hashing.domains import TASKS
from qshift.benchmarks.hashing.splits import make_splits
from qshift.recipes.expected import average_precision
from qshift.recipes.in_memory import unit_rows

BITS, SHORTLIST = 64, 100


def precisions(domains, seed):
    """AP [n, 4] of each query: mapped and learned codes, alone and re-ranked."""
    splits = make_splits(len(domains.source), len(domains.target), seed, "target10")
    source, target = (np.asarray(unit_rows(rows)) for rows in (domains.source, domains.target))
    asking, y = target[splits.query], domains.source_labels
    found = fit(source, y, target[splits.target_train], PscaConfig(bits=BITS, seed=seed))
    cosines = asking @ source.T
    asked, rows = found.relaxed(asking), []
    tables = [
        hamming(pack(asked), pack(items))
        for items in (found.relaxed(source), found.quantisation.source_codes)
    ]
    for place, label in enumerate(domains.target_labels[splits.query].tolist()):
        right = (y == label).astype(np.int64)
        rows.append([
            average_precision(table[place], cosines[place], right, shortlist)
            for shortlist in (0, SHORTLIST) for table in tables
        ])  # fmt: skip
    return np.array(rows)


def main(data: Path, splits: int) -> None:
    for name in ("mnist-usps", "usps-mnist"):
        domains = TASKS[name](data, Path(), None)
        found = 100 * np.concatenate([precisions(domains, seed) for seed in range(splits)])
        print(f"{name}: {len(found)} queries of {splits} splits")
        for place, what in enumerate(("codes alone", "re-ranked")):
            mapped, learned = found[:, 2 * place : 2 * place + 2].T
            low, high = bootstrap_interval(learned - mapped, np.random.default_rng(0))
            print(
                f"  {what:12} mapped {mapped.mean():.1f}  learned {learned.mean():.1f}  "
                f"{(learned - mapped).mean():+.1f} [{low:+.1f}, {high:+.1f}]",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
