"""What the first query of each modality would wait for, done once before it comes."""

from __future__ import annotations

import numpy as np
import torch

from stream.pipeline import Pipeline

UNKNOWN_WORD = "qzxqzxqzx"
"""Nobody's word: to look it up, query repair has to read all of its lists."""


@torch.no_grad()
def warm_up(pipeline: Pipeline) -> None:
    """Loads lists, imports and caches; answers do not depend on it."""
    retrieval = pipeline.retrieval
    gallery = retrieval.current()
    for modality, encoder in pipeline.encoders.items():
        pipeline.new_adapter(modality)  # the first optimizer imports torch._dynamo, which takes seconds
        pipeline.new_aligner(modality)
        features = encoder.encode(encoder.collate([], pipeline.config.batch.size))
        retrieval.neighbours(gallery, features, modality)
        # Looks at all clean queries, once.
        one = retrieval.twin(gallery, features, 1, modality)
        retrieval.fusion.quiet(gallery, modality, one, np.zeros(1, np.bool_))
    if pipeline.admit.repair is not None:
        pipeline.admit.repair(UNKNOWN_WORD)
