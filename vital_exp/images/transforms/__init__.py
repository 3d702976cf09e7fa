"""Random transforms of the pictures before each step, one random stream per picture.

docs/methods/transforms.md lists the transforms of each method, with their amounts.
"""

from vital_exp.images.transforms.base import Compose, Resizing, Transform
from vital_exp.images.transforms.crops import Crop, NormalCrop, ShrinkingCrop, ToInputSize, UniformCrop
from vital_exp.images.transforms.geometry import RandomAffine, Rotate, Scale
from vital_exp.images.transforms.noise import GaussianBlur, NormalNoise, UniformNoise
from vital_exp.images.transforms.shifts import CircularJitter, CropJitter, HorizontalFlip, Pad

__all__ = ["CircularJitter", "Compose", "Crop", "CropJitter", "GaussianBlur", "HorizontalFlip", "NormalCrop"]
__all__ += ["NormalNoise", "Pad", "RandomAffine", "Resizing", "Rotate", "Scale", "ShrinkingCrop", "ToInputSize"]
__all__ += ["Transform", "UniformCrop", "UniformNoise"]
