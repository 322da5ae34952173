"""Axis letters, value ranges and tensor aliases: the legend of the whole package.

A suffix of axis letters (``w_BS``) is written wherever tensors of different rank meet.

======  ===================================================================
letter  axis
======  ===================================================================
B       batch
Z       latent width (what a seed draws)
S       style width (what the mapping network returns)
K       style inputs of a generator (its W+ positions)
M       learned words of a prompt
T       tokens of a text
D       token width of a CLIP text encoder
E       width of the space that CLIP's pictures and texts share
P       sentence templates
C H W   channels, height and width of a picture
======  ===================================================================

Ranges. Pictures are float BCHW in [-1, 1] at every public door (a generator may overshoot slightly).
CLIP features are un-normalised unless a name or a docstring says "unit".
"""

from jaxtyping import Float
from torch import Tensor

Picture = Float[Tensor, "B C H W"]
"""Pictures in [-1, 1]."""
Latent = Float[Tensor, "B Z"]
"""Standard normal latents."""
Style = Float[Tensor, "B S"]
"""One style per picture (W)."""
Styles = Float[Tensor, "B K S"]
"""One style per picture and style input (W+)."""
Words = Float[Tensor, "B M D"]
"""Learned words, in the token space of one CLIP."""
Feature = Float[Tensor, "B E"]
"""CLIP features, un-normalised."""
UnitFeature = Float[Tensor, "B E"]
"""CLIP features or directions of length one."""
TemplateFeature = Float[Tensor, "P E"]
"""Unit text features of one label in every template."""
Scalar = Float[Tensor, ""]
"""A loss."""
