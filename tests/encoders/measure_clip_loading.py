"""What it costs to bring a model: seconds of processor time and peak memory beyond an idle process.

    PYTHONPATH=. python tests/encoders/measure_clip_loading.py ViT-B-32

Random weights of that configuration are written as .pt and as .safetensors, and each is brought in a process
of its own: into a folder, and from there as towers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def peak() -> int:
    """Bytes. Not ru_maxrss, which begins with what the parent had."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def brought(model: str, file: str) -> None:
    from core.allocator import keep_memory
    from encoders.clip import open_clip_towers, tokenizer_of
    from encoders.clip_folder import clip_folder
    from encoders.clip_source import ClipSource

    keep_memory()  # as the command does
    tokenizer_of(model)  # its vocabulary is no part of the weights
    before, started = peak(), sum(os.times()[:2])
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as folder:
        clip_folder(Path(folder), ClipSource(model, file, quick_gelu=False))
        open_clip_towers(f"local-dir:{folder}")
    print(json.dumps({"seconds": sum(os.times()[:2]) - started, "bytes": peak() - before}))


def measured(model: str, folder: Path) -> dict[str, tuple[float, float]]:
    """By ending: seconds of processor time, and peak memory in sizes of the file."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        state = open_clip.create_model(model).state_dict()
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    del state
    found = {}
    for file in (folder / "w.pt", folder / "w.safetensors"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, __file__, model, str(file)],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        said = json.loads(done.stdout.splitlines()[-1])
        found[file.suffix] = (said["seconds"], said["bytes"] / file.stat().st_size)
        file.unlink()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:
        brought(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as place:
            for ending, (seconds, sizes) in measured(sys.argv[1], Path(place)).items():
                print(f"{ending}: {seconds:.1f} s of processor time, peak {sizes:.2f} of the file's bytes")
