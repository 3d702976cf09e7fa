"""Pictures as latents of a generative model: only what it can make is searched (docs/methods/images.md).

Nguyen et al. (NeurIPS 2016) searched the code of a generator for activation maximisation; here the model is any
autoencoder or diffusion model without a text that diffusers saved, and the loss that of any method.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.images.parameterisation import Parameterisation, within_range
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.channels import GREY, RGB, in_channels
from vital_exp.models.network import Preprocessing
from vital_exp.values import number, whole_number

logger = logging.getLogger(__name__)

KEY = "image.weights"
AUTOENCODERS, UNCONDITIONAL, CONDITIONAL = ("AutoencoderKL", "AutoencoderTiny"), "UNet2DModel", "UNet2DConditionModel"
WANTED = "a folder that diffusers saved: an AutoencoderKL, or a pipeline of a UNet2DModel"


class Generator(nn.Module):
    """A generative model that is frozen: a decoder of latents, a diffusion sampler of them, or both.

    Args:
        autoencoder: of diffusers; None where the sampler makes pictures itself.
        sampler: a UNet2DModel; None where the latents are the decoder's own.
        scheduler: the configuration of the sampler's scheduler.
        steps: of deterministic sampling.
    """

    def __init__(self, autoencoder: Any, sampler: Any, scheduler: dict[str, Any], steps: int) -> None:
        super().__init__()
        self.autoencoder, self.sampler, self.scheduler, self.steps = autoencoder, sampler, scheduler, steps
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Of the pictures that it makes."""
        return int((self.autoencoder or self.sampler).config.out_channels)

    @property
    def trained_side(self) -> int | None:
        """The side of the pictures it was trained for, in px; None where it does not say."""
        side = (self.autoencoder or self.sampler).config.get("sample_size")
        return side if isinstance(side, int) else None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape (c, h, w) of latents whose picture covers (height, width)."""
        shrinks = _halvings(self.autoencoder)
        coarse = 2 ** _halvings(self.sampler)  # the sampler takes latents that it can halve so often
        sides = [coarse * math.ceil(side / 2**shrinks / coarse) for side in size]
        channels = self.autoencoder.config.latent_channels if self.autoencoder else self.sampler.config.in_channels
        return int(channels), sides[0], sides[1]

    def forward(self, latents: Tensor) -> Tensor:
        """Return pictures (N, C, H, W) in [0, 1] of latents (N, c, h, w) that are N(0, I) by themselves."""
        sampled = self._sampled(latents) if self.sampler is not None else latents
        if self.autoencoder is None:
            return (sampled / 2 + 0.5).clamp(0, 1)
        scale, shift = self._scale()
        decoded: Tensor = self.autoencoder.decode(sampled / scale + shift).sample
        return (decoded / 2 + 0.5).clamp(0, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents (N, c, h, w) of pictures (N, C, H, W) in [0, 1]."""
        scale, shift = self._scale()
        found = self.autoencoder.encode(pictures * 2 - 1)
        latents: Tensor = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
        return (latents - shift) * scale

    def _scale(self) -> tuple[float, float]:
        """The factor and the shift that diffusers keeps: latents = (code - shift) * factor."""
        config = self.autoencoder.config
        return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)

    def _sampled(self, noise: Tensor) -> Tensor:
        """Return what DDIM without noise makes of noise, with a graph to it (Song et al. 2021)."""
        from diffusers import DDIMScheduler

        scheduler: Any = DDIMScheduler.from_config(self.scheduler)  # type: ignore[no-untyped-call]
        scheduler.set_timesteps(self.steps, device=noise.device)
        sample: Tensor = noise * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            sample = scheduler.step(self.sampler(sample, step).sample, step, sample, eta=0.0).prev_sample
        return sample


def _halvings(model: Any) -> int:
    """Return how often a model of diffusers halves its input."""
    if model is None:
        return 0
    if model.config.get("encoder_block_out_channels"):  # AutoencoderTiny
        return len(model.config["encoder_block_out_channels"]) - 1
    return len(model.config["block_out_channels"]) - 1


class Prior(Parameterisation):
    """The latents of a generative model, which start from N(0, I); after every step they are brought to a ball.

    Pictures whose sides are no multiples of the model's are cut from the middle of larger ones. The model is frozen,
    and no part of a checkpoint.

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures, for the start.
        init: pictures to start from, (N, C, H, W) normalised; the autoencoder's latents of them are taken.
        weights: a folder that diffusers saved.
        sampling_steps: of a diffusion model.
        radius: of the ball, in units of the length of N(0, I) noise; None: no ball.

    Raises:
        UsageError: no such folder, diffusers is not installed, or a model of another kind.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        streams: RandomStreams,
        init: Tensor | None = None,
        weights: str | None = None,
        sampling_steps: int = 4,
        radius: float | None = 1.0,
    ) -> None:
        super().__init__(preprocessing)
        whole_number("image.sampling_steps", sampling_steps, 1)
        self.radius = None if radius is None else number("image.radius", radius, 0)
        if self.radius == 0:
            raise UsageError("image.radius", radius, "above 0, or null")
        self.size = size
        generator = generator_of(weights, sampling_steps)
        self._kept: list[Generator] = [generator]  # a list, so that the model is no part of the state
        self._check_channels(generator)
        if generator.trained_side and generator.trained_side != max(size):
            logger.info("image=prior: made for pictures of %d px; these are of %dx%d", generator.trained_side, *size)
        shape = generator.latent_shape(size)
        self.latents = nn.Parameter(streams.normal(shape, "start") if init is None else self._start(init, shape))
        self.project()

    def _check_channels(self, generator: Generator) -> None:
        if self.channels not in (GREY, RGB) or generator.channels not in (GREY, RGB):
            wanted = f"makes pictures of {generator.channels} channels, and the network takes {self.channels}"
            raise UsageError("image", "prior", wanted)

    @torch.no_grad()
    def _start(self, init: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return the latents of pictures to start from, which are mirrored at their borders to the model's size."""
        generator = self._kept[0].to(init.device)
        if generator.sampler is not None:
            raise UsageError("image.init", "an image", "noise: a diffusion model starts from nothing else")
        pictures = in_channels(self.preprocessing.denormalise(init).clamp(0, 1), generator.channels)
        factor = 2 ** _halvings(generator.autoencoder)
        rows, columns = shape[1] * factor - self.size[0], shape[2] * factor - self.size[1]
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return generator.encode(nn.functional.pad(pictures, sides, mode="replicate")).clone()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prior:
        """Bring the model along to another device."""
        self._kept[0]._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self) -> Tensor:
        """Return the pictures, (N, C, H, W) RGB or grey in [0, 1]."""
        made = self._kept[0](self.latents)
        top, left = (made.shape[-2] - self.size[0]) // 2, (made.shape[-1] - self.size[1]) // 2
        return in_channels(made[..., top : top + self.size[0], left : left + self.size[1]], self.channels)

    def network_input(self) -> Tensor:
        """Return the pictures in the network's space, (N, C, H, W)."""
        return self.preprocessing.normalise(self())

    def followed(self, pictures: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient but for pixels at a bound that a step down would leave."""
        return within_range(self.preprocessing, pictures, gradient)

    @torch.no_grad()
    def project(self) -> None:
        """Shorten latents that are longer than ``radius`` times the root of their number."""
        if self.radius is not None:
            longest = self.radius * self.latents[0].numel() ** 0.5
            self.latents.copy_(self.latents.renorm(2, 0, longest) if len(self.latents) else self.latents)


def generator_of(weights: str | None, steps: int) -> Generator:
    """Load a generative model from a folder; nothing is downloaded, and nothing unpickled.

    Raises:
        UsageError: no such folder or library, or a model that needs a text or is of another kind.
    """
    if weights is None:
        raise UsageError(KEY, weights, f"{WANTED}, is needed; tools/train_prior.py trains a small one")
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        raise UsageError(KEY, weights, f"no such folder, and nothing is downloaded; {WANTED}")
    stamps = tuple(sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()))
    return _loaded(str(weights), steps, stamps)


@lru_cache(maxsize=1)
def _loaded(weights: str, steps: int, _stamps: tuple[object, ...]) -> Generator:
    try:
        import diffusers
    except ImportError:
        raise UsageError("image", "prior", "needs diffusers: pip install vital-exp[prior]") from None
    folder = Path(weights).expanduser()
    parts = _parts(folder, weights)
    loaded: dict[str, Any] = {}
    for role, (place, kind) in parts.items():
        try:
            loaded[role] = getattr(diffusers, kind).from_pretrained(
                place, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            problem = f"cannot be read as {kind} in .safetensors ({str(error).splitlines()[0]})"
            raise UsageError(KEY, weights, problem) from None
    scheduler = _json(folder / "scheduler" / "scheduler_config.json", weights) if "sampler" in loaded else {}
    return Generator(loaded.get("autoencoder"), loaded.get("sampler"), scheduler, steps)


def _parts(folder: Path, weights: str) -> dict[str, tuple[Path, str]]:
    """Return the folder and the class of the autoencoder and of the sampler, as far as there are any."""
    if not (folder / "model_index.json").is_file():
        kind = _json(folder / "config.json", weights).get("_class_name")
        if kind not in AUTOENCODERS:
            problem = f"holds {kind or 'no model of diffusers'}; {WANTED}"
            raise UsageError(KEY, weights, problem)
        return {"autoencoder": (folder, str(kind))}
    index = _json(folder / "model_index.json", weights)
    kinds = {name: (index.get(name) or [None, None])[1] for name in ("vae", "unet")}
    if kinds["unet"] == CONDITIONAL:
        problem = f"holds a {CONDITIONAL}, which needs a text; its autoencoder alone: {weights}/vae"
        raise UsageError(KEY, weights, problem)
    if kinds["unet"] != UNCONDITIONAL or kinds["vae"] not in (None, *AUTOENCODERS):
        raise UsageError(KEY, weights, f"holds {', '.join(str(kind) for kind in kinds.values())}; {WANTED}")
    found = {"sampler": (folder / "unet", UNCONDITIONAL)}
    return found if kinds["vae"] is None else {**found, "autoencoder": (folder / "vae", str(kinds["vae"]))}


def _json(path: Path, weights: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(KEY, weights, f"{path.name} cannot be read ({reason}); {WANTED}") from None
    return found if isinstance(found, dict) else {}
