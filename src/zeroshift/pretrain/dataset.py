"""Renders of many people, kept as 8-bit shards on disk so that every training reads the same pictures.

A shard holds SHARD people: `z` float32 (SHARD, Z), `photo` uint8 (SHARD, 3, 64, 64) and, for the leading
shards, `domains` uint8 (SHARD, D, 3, 64, 64) in the order of shading.DOMAINS[1:]. Training people come from
their own random stream, never from the seeds that users sample or that quality is measured on.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zeroshift.portraits.scene import LATENT_DIM, cast, sample_scene
from zeroshift.portraits.shading import DOMAINS, shade

SHARD = 1000
SIZE = 64
_STREAM = 7_000_000


def default_folder() -> Path:
    """Where shards are kept unless told otherwise."""
    return Path(os.environ.get("ZEROSHIFT_CACHE", Path.home() / ".cache" / "zeroshift")) / "portraits"


def shard_latents(index: int, people: int = SHARD) -> Tensor:
    """Latents (people, Z) of one shard."""
    return torch.randn(people, LATENT_DIM, generator=torch.Generator().manual_seed(_STREAM + index))


def _bytes(pictures: Tensor) -> np.ndarray:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard_{index:03d}.npz"


def make_shard(folder: Path, index: int, with_domains: bool, people: int | None = None) -> None:
    """Renders one shard unless its file is there; written under a temporary name and then renamed."""
    path = _path(folder, index)
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    people = people or SHARD
    z = shard_latents(index, people)
    photos = []
    domains = []
    for start in range(0, people, 20):
        buffers = cast(sample_scene(z[start : start + 20]), 2 * SIZE)
        photos.append(_bytes(shade(buffers, "photo", SIZE)))
        if with_domains:
            domains.append(np.stack([_bytes(shade(buffers, d, SIZE)) for d in DOMAINS[1:]], 1))
    arrays = {"z": z.numpy(), "photo": np.concatenate(photos)}
    if with_domains:
        arrays["domains"] = np.concatenate(domains)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def _make_missing(folder: Path, wanted: dict[int, bool]) -> None:
    """Renders the shards that are not there, of which some carry every domain: one process per core where
    there are several."""
    missing = [
        (folder, index, domains, SHARD)
        for index, domains in wanted.items()
        if not _path(folder, index).exists()
    ]
    cores = min(len(missing), os.cpu_count() or 1)
    if cores < 2:
        for each in missing:
            make_shard(*each)
        return
    with multiprocessing.get_context("spawn").Pool(cores, torch.set_num_threads, (1,)) as pool:
        pool.starmap(make_shard, missing, chunksize=1)


@dataclass(frozen=True)
class People:
    """Pictures of the built-in world in memory: z (n, Z), photo uint8 (n, 3, 64, 64), domains uint8 (m, D, 3,
    64, 64), m <= n."""

    z: Tensor
    photo: Tensor
    domains: Tensor


def load(folder: Path, shards: int, domain_shards: int) -> People:
    """Reads, and renders where missing, `shards` shards, of which the leading `domain_shards` carry every
    domain."""
    z = []
    photo = []
    domains = []
    _make_missing(folder, {index: index < domain_shards for index in range(max(shards, domain_shards))})
    for index in range(max(shards, domain_shards)):
        with np.load(_path(folder, index)) as file:
            z.append(torch.from_numpy(file["z"]))
            photo.append(torch.from_numpy(file["photo"]))
            if index < domain_shards:
                domains.append(torch.from_numpy(file["domains"]))
    empty = torch.zeros(0, len(DOMAINS) - 1, 3, SIZE, SIZE, dtype=torch.uint8)
    return People(torch.cat(z), torch.cat(photo), torch.cat(domains) if domains else empty)


def to_float(pictures: Tensor) -> Tensor:
    """uint8 pictures -> float pictures in [-1, 1]."""
    return pictures.float() / 127.5 - 1
