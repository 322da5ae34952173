"""Options of what learns from pictures of the target."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from zeroshift.config.options import config_class as _config


@_config(section="shots")
class ShotsConfig:
    """Pictures of the target, beside its words or in place of them."""

    folder: Annotated[Path | None, tyro.conf.arg(aliases=("--pictures",))] = None
    """Folder with pictures of the target: PNG, JPEG, WebP, TIFF, BMP or GIF, of any size; folders in it are
    not looked into. Unset: the target is given in words alone."""
    crop: Literal["centre", "top", "pad"] = "centre"
    """What is taken of a picture that is no square: centre, its middle square; top, the upper one of a tall
    picture, where portraits have their faces; pad, all of it, on white."""
    unreadable: Literal["skip", "refuse"] = "skip"
    """What becomes of files that cannot be read as pictures: skipped with a warning that names them, or the
    run is refused."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the pictures' direction beside the words', where both are given: 0 is the words' alone, 1 the
    pictures'."""
    source_pictures: Annotated[int, Field(ge=0)] = 0
    """Pictures of the source whose mean the way to the pictures of the target begins at. 0: 4096 of a
    generator with styles, by which another seed changes the direction by less than a degree; those that a
    diffusion model learns from, with which it is over ten, as making more takes long."""
    copy: bool = False
    """Writes the pictures, as the run sees them, into its folder (shots/); else it holds their hashes
    alone."""
