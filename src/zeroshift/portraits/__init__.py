"""The built-in world: people who exist in every domain, so that zero-shot adaptation has a ground truth."""

from zeroshift.portraits.captions import domain_of, is_held_out
from zeroshift.portraits.scene import LATENT_DIM, sample_scene
from zeroshift.portraits.shading import DOMAINS, HELD_OUT, TUNING, render

__all__ = [
    "DOMAINS",
    "HELD_OUT",
    "LATENT_DIM",
    "TUNING",
    "domain_of",
    "is_held_out",
    "render",
    "sample_scene",
]
