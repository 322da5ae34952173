"""True pictures of a world in files: people to learn from, or to look at."""

from __future__ import annotations

from pathlib import Path

from zeroshift import __version__
from zeroshift.config.measuring import SHOT_SEEDS, EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files.images import picture_files, save_pictures
from zeroshift.pictures.sample import parse_seeds
from zeroshift.worlds.world import World

SIDES = (16, 1024)
"""Smallest and largest side in pixels of what is written."""


def write_truths(
    world: World, label: str, seeds: str = SHOT_SEEDS, size: int = 64, folder: Path | None = None
) -> list[Path]:
    """Paths of grid.png and of one PNG per seed (seed04000.png, ...), the true pictures of the domain that a
    label names, in a folder, by default one named after the domain. InputError for a domain that the world
    lacks, and where the folder holds other pictures."""
    domain = world.domain_of(label)
    if domain is None:
        raise InputError(
            f"the world {world.name} has no domain {label!r}; its domains are {', '.join(world.domains)}."
        )
    if not SIDES[0] <= size <= SIDES[1]:
        raise InputError(f"size must be {SIDES[0]} to {SIDES[1]} pixels, got {size}.")
    numbers = list(dict.fromkeys(parse_seeds(seeds)))
    place = folder or Path(domain.replace(" ", "-"))
    names = {f"seed{number:05d}.png" for number in numbers}
    if place.is_dir() and (others := [each.name for each in picture_files(place) if each.name not in names]):
        raise InputError(
            f"{place} holds other pictures ({others[0]}), which would be taken for these; choose another "
            "--out."
        )
    facts = {"software": f"zeroshift {__version__}", "world": world.name, "domain": domain}
    pictures = world.truth(world.latents(numbers), domain, size)
    try:
        return save_pictures(pictures, numbers, place, facts)
    except OSError as error:
        raise InputError(
            f"cannot write pictures to {place}: {error.strerror}; choose another --out."
        ) from error


def measured_seeds(seeds: str) -> list[int]:
    """Seeds among these whose people `zeroshift evaluate` measures by default."""
    return sorted(set(parse_seeds(seeds)).intersection(parse_seeds(EvaluateConfig().seeds)))
