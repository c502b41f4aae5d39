"""What the first query of each modality would wait for, done once before it comes."""

from __future__ import annotations

import numpy as np
import torch

from core.protocols import Gallery
from stream.pipeline import Pipeline

UNKNOWN_WORD = "qzxqzxqzx"
"""Nobody's word: to look it up, query repair has to read all of its lists."""


@torch.no_grad()
def warm_up(pipeline: Pipeline) -> None:
    """Loads lists, imports and caches; answers do not depend on it."""
    for modality, encoder in pipeline.encoders.items():
        pipeline.new_adapter(modality)  # the first optimizer imports torch._dynamo, which takes seconds
        pipeline.new_aligner(modality)
        features = encoder.encode(encoder.collate([], pipeline.config.batch.size))
        view = pipeline.retrieval.view(modality)
        view.neighbours(features)
        view.quiet(view.twin(features, 1), np.zeros(1, np.bool_))  # looks at all clean queries, once
    if pipeline.admit.repair is not None:
        pipeline.admit.repair(UNKNOWN_WORD)


@torch.no_grad()
def warm_gallery(pipeline: Pipeline, gallery: Gallery) -> None:
    """What the first batch of a gallery version would wait for; beside the loop, so no tower is asked."""
    for modality, encoder in pipeline.encoders.items():
        features = torch.eye(1, encoder.width, device=pipeline.device)
        view = pipeline.retrieval.view(modality, gallery=gallery)
        view.quiet(view.twin(features, 1), np.zeros(1, np.bool_))  # looks at all clean queries, once
