"""Captions: the bound of what words of each picture's own can bring. In place of learned words stand the true
captions of each person, which only a world can know.

Stage 2 is that of IPL; there is nothing to learn in a stage 1. DeltaT_i = n( n(E_T(caption of i in the
target)) - n(E_T(caption of i in the source)) ).
"""

from __future__ import annotations

from typing import Any

from zeroshift.config.targets import target_parts
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import Captions
from zeroshift.methods.ipl import move_generator
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.training.loop import Hook, Progress


class CaptionsRun(ZeroShotRun):
    """A run whose words are the captions of its world."""

    def words(self, codes: Any) -> list[Any]:
        """For every CLIP the captions of the people of codes."""
        assert self.world is not None  # the table of methods has refused others
        z_BZ = self.backend.latents(codes)
        labels = [self.config.source, *(part.label for part in target_parts(self.config.target))]
        source, *targets = (self.world.captions(z_BZ, label) for label in labels)
        assert source is not None and all(each is not None for each in targets)
        return [Captions(source, [each for each in targets if each is not None])] * len(self.clips)


def open_run(
    config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> CaptionsRun:
    """A run by captions, loaded and checked; nothing is written."""
    return CaptionsRun(config, given, hook, progress)


def train(run: CaptionsRun) -> None:
    """Stage 2, from where the run stands."""
    move_generator(run)
