"""The main job on generators and CLIPs in the layouts that users hold: `python benchmarks/formats.py [--size
256] [--steps 3]`.

Files are built from the fill rule of the golden numbers (tests/goldenlib.py): a config-f StyleGAN2 as
rosinality's `.pt`, NVIDIA's `.pkl` and our safetensors, the same weights in each, and a ViT-B/32-shaped CLIP
under OpenAI's names. For every layout the command line adapts a few steps of either stage in a process of its
own; the losses of all layouts must agree. Then a 1024 px generator is loaded and sampled. Prints a table of
time and peak memory; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from goldenlib import rule
from zeroshift.files import layouts
from zeroshift.files.checkpoints import export_pt, save_generator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

SEED = 20
TOLERANCE = 1e-4
"""Largest relative difference between the losses of two layouts."""


def generator(size: int) -> StyleGAN2Generator:
    """Config-f with every weight from the fill rule, at the golden table's scales."""
    made = StyleGAN2Generator(StyleGAN2Config(size=size)).eval()
    for key, value in made.state_dict().items():
        scale, offset = 1.0, 0.0
        if key.startswith("style."):
            scale = 100.0 if key.endswith("weight") else 10.0
        elif "modulation" in key:
            scale, offset = (0.5, 0.0) if key.endswith("weight") else (0.1, 1.0)
        elif "to_rgb" in key:
            scale = 0.3 if key.endswith("weight") else 0.1
        elif key.endswith(("noise.weight", "activate.bias")):
            scale = 0.1
        elif key == "latent_avg":
            scale = 0.3
        value.copy_(rule(key, value.shape, SEED, scale, offset))
    return made


def write_nvidia(path: Path, made: StyleGAN2Generator) -> None:
    """NVIDIA's pickle: modules as persistent objects whose source text would be executed by the official
    reader."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("only its name is needed")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module.__dict__["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    sys.modules |= {package.__name__: package, module.__name__: module}

    class Module:
        """One module of the tree, reduced as NVIDIA's programs do."""

        def __init__(self, name: str, entries: dict[str, Any]) -> None:
            inner: dict[str, dict[str, Any]] = {}
            tensors = {key: value for key, value in entries.items() if "." not in key}
            for key, value in entries.items():
                if "." in key:
                    head, _, rest = key.partition(".")
                    inner.setdefault(head, {})[rest] = value
            modules = {head: Module(head, each) for head, each in inner.items()}
            state = {"_parameters": {}, "_buffers": tensors, "_modules": modules, "training": False}
            self.meta = {
                "type": "class",
                "version": 6,
                "module_src": "raise SystemExit",
                "class_name": name,
                "state": state,
            }

        def __reduce__(self) -> Any:
            return _reconstruct_persistent_obj, (self.meta,)

    network = Module("Generator", dict(layouts.to_nvidia(made.state())))
    network.meta["state"] |= {
        "z_dim": 512,
        "c_dim": 0,
        "w_dim": 512,
        "img_resolution": made.image_size,
        "img_channels": 3,
    }
    network.meta["state"] |= {"_init_args": (), "_init_kwargs": {"synthesis_kwargs": {"conv_clamp": None}}}
    path.write_bytes(
        pickle.dumps({"G": None, "D": None, "G_ema": network, "training_set_kwargs": None}, protocol=4)
    )


def write_clip(path: Path) -> None:
    """A ViT-B/32 under OpenAI's names, half precision as published, from the fill rule."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "token_embedding.weight": (49408, 512),
    }
    for norm, width in (("visual.ln_pre", 768), ("visual.ln_post", 768), ("ln_final", 512)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for prefix, width in (("visual.transformer", 768), ("transformer", 512)):
        for block in range(12):
            name = f"{prefix}.resblocks.{block}."
            shapes |= {
                f"{name}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")
            }
            for part, rows, columns in (
                ("attn.in_proj_", 3, 1),
                ("attn.out_proj.", 1, 1),
                ("mlp.c_fc.", 4, 1),
                ("mlp.c_proj.", 1, 4),
            ):
                shapes |= {
                    f"{name}{part}weight": (rows * width, columns * width),
                    f"{name}{part}bias": (rows * width,),
                }
    state = {key: rule(key, shape, SEED, *_clip_scale(key, shape)).half() for key, shape in shapes.items()}
    torch.save(state | {"logit_scale": torch.tensor(4.6052)}, path)


def _clip_scale(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Scale and offset of the golden table for a tensor of a CLIP."""
    if "ln_" in key:
        return (0.1, 1.0) if key.endswith("weight") else (0.05, 0.0)
    known = {"token_embedding": 0.5, "positional": 0.2, "class_embedding": 0.3}
    for part, scale in known.items():
        if part in key:
            return scale, 0.0
    if key.endswith("bias"):
        return 0.05, 0.0
    if "in_proj" in key:
        return 1.5 * shape[1] ** -0.5, 0.0
    fan_in = shape[0] if key.endswith("proj") or key == "text_projection" else torch.Size(shape[1:]).numel()
    return fan_in**-0.5, 0.0


RUN = """
import pathlib, re, sys
from zeroshift.app.cli import main
status = main(sys.argv[2:])
peak = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())
pathlib.Path(sys.argv[1]).write_text(peak[1])
sys.exit(status)
"""


def call(note: Path, *arguments: str) -> tuple[float, float]:
    """Seconds and peak GB of one command, which must succeed. The command's own peak: getrusage would count
    its parent's, too."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", RUN, str(note), *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began, int(note.read_text()) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="pictures per step of stage 1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, made = Path(folder), generator(args.size)
        files = {
            "rosinality .pt": place / "a.bin",
            "NVIDIA .pkl": place / "b.bin",
            "safetensors": place / "c.bin",
        }
        export_pt(files["rosinality .pt"], made)
        write_nvidia(files["NVIDIA .pkl"], made)
        save_generator(files["safetensors"], made)
        write_clip(place / "clip.bin")
        print("| file | job | seconds | peak GB |\n|---|---|---|---|")
        rows, losses = [], {}
        for name, path in files.items():
            out = place / path.stem
            options = [
                "--mapper.steps",
                args.steps,
                "--mapper.batch",
                args.batch,
                "--steps",
                args.steps,
                "--out",
                out,
            ]
            options += ["--grid-every", 0, "--samples", 2]
            seconds, peak = call(
                place / "peak",
                *(
                    "adapt",
                    "--generator",
                    str(path),
                    "--clip",
                    f"{place / 'clip.bin'}:quick_gelu",
                    "--target",
                    "pencil sketch",
                ),
                *(str(option) for option in options),
            )
            lines = (out / "metrics.jsonl").read_text().splitlines()
            losses[name] = [json.loads(line)["loss"] for line in lines]
            assert len(losses[name]) == 2 * args.steps
            rows.append({"file": name, "job": f"{args.steps} + {args.steps} steps at {args.size} px"})
            rows[-1] |= {"seconds": round(seconds, 1), "peak_gb": round(peak, 2)}
            print(f"| {' | '.join(str(value) for value in rows[-1].values())} |", flush=True)
        first = losses["safetensors"]
        apart = max(abs(a - b) / abs(b) for each in losses.values() for a, b in zip(each, first, strict=True))
        assert apart <= TOLERANCE, f"the losses of two layouts differ by {apart:.1e}"
        large = place / "large.bin"
        export_pt(large, generator(1024))
        seconds, peak = call(
            place / "peak", "sample", str(large), "--seeds", "0-1", "--out", str(place / "pictures")
        )
        rows.append(
            {
                "file": "rosinality .pt",
                "job": "2 pictures at 1024 px",
                "seconds": round(seconds, 1),
                "peak_gb": round(peak, 2),
            }
        )
        print(f"| {' | '.join(str(value) for value in rows[-1].values())} |")
    print(json.dumps({"rows": rows, "losses_apart": apart}))


if __name__ == "__main__":
    main()
