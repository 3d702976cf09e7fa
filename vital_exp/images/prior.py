"""Pictures as latents of a generative model: only pictures that the model can make (docs/methods/images.md).

Nguyen et al. (NeurIPS 2016) optimised the latents of a generator for activation maximisation. Here the model is any
autoencoder or unconditional diffusion model that diffusers saved, or the package's own autoencoder of drawn images, and
the objective is that of any method.
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
from vital_exp.images.embedded_prior import embedded_prior
from vital_exp.images.parameterisation import Parameterisation, within_range
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.channels import GREY, RGB, in_channels
from vital_exp.models.network import Preprocessing
from vital_exp.values import number, whole_number

logger = logging.getLogger(__name__)

KEY = "image.weights"
AUTOENCODERS, UNCONDITIONAL, CONDITIONAL = ("AutoencoderKL", "AutoencoderTiny"), "UNet2DModel", "UNet2DConditionModel"
EMBEDDED = "embedded"  # the package's own autoencoder
WANTED = "a folder that diffusers saved, of an AutoencoderKL or a pipeline of a UNet2DModel"


class Generator(nn.Module):
    """A frozen generative model: an autoencoder's decoder, a diffusion sampler, or a sampler and then a decoder.

    Args:
        autoencoder: a model of diffusers or the embedded one; None where the sampler returns pictures.
        sampler: a UNet2DModel; None where the decoder takes the latents directly.
        scheduler: the configuration of the sampler's scheduler.
        steps: number of steps of deterministic sampling.
    """

    def __init__(self, autoencoder: Any, sampler: Any, scheduler: dict[str, Any], steps: int) -> None:
        super().__init__()
        self.autoencoder, self.sampler, self.scheduler, self.steps = autoencoder, sampler, scheduler, steps
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """The number of channels of the pictures that the model makes."""
        return int((self.autoencoder or self.sampler).config["out_channels"])

    @property
    def trained_side(self) -> int | None:
        """The side of the pictures that the model was trained on, in px; None where its configuration has none."""
        side = (self.autoencoder or self.sampler).config.get("sample_size")
        return side if isinstance(side, int) else None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape (c, h, w) of latents whose picture covers (height, width)."""
        shrinks = _halvings(self.autoencoder)
        coarse = 2 ** _halvings(self.sampler)  # the sides of the sampler's input are multiples of this number
        sides = [coarse * math.ceil(side / 2**shrinks / coarse) for side in size]
        config = (self.autoencoder or self.sampler).config
        channels = config["latent_channels" if self.autoencoder else "in_channels"]
        return int(channels), sides[0], sides[1]

    def forward(self, latents: Tensor) -> Tensor:
        """Return the pictures (N, C, H, W) in [0, 1] of latents (N, c, h, w), which are N(0, I) before optimisation."""
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
        """The factor and the shift of the autoencoder's configuration: latents = (code - shift) * factor."""
        config = self.autoencoder.config
        return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)

    def _sampled(self, noise: Tensor) -> Tensor:
        """Return samples of deterministic DDIM (Song et al. 2021) for noise (N, c, h, w), with a graph to the noise."""
        from diffusers import DDIMScheduler

        scheduler: Any = DDIMScheduler.from_config(self.scheduler)  # type: ignore[no-untyped-call]
        scheduler.set_timesteps(self.steps, device=noise.device)
        sample: Tensor = noise * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            sample = scheduler.step(self.sampler(sample, step).sample, step, sample, eta=0.0).prev_sample
        return sample


def _halvings(model: Any) -> int:
    """Return how often a model halves its input."""
    if model is None:
        return 0
    if model.config.get("encoder_block_out_channels"):  # AutoencoderTiny
        return len(model.config["encoder_block_out_channels"]) - 1
    return len(model.config["block_out_channels"]) - 1


class Prior(Parameterisation):
    """The latents of a generative model, which start from N(0, I); after every step they are projected onto a ball.

    The model makes pictures whose sides are multiples of its own factor; other sizes are cut from the middle of the
    next larger ones. The model is frozen, and checkpoints do not contain it.

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures, for the start.
        init: pictures to start from, (N, C, H, W) normalised; the autoencoder encodes them.
        weights: a folder that diffusers saved, or ``"embedded"``, the package's autoencoder of drawn images.
        sampling_steps: number of sampling steps of a diffusion model.
        radius: of the ball, in units of the expected length of N(0, I) noise; None: no ball.

    Raises:
        UsageError: no such folder, diffusers is not installed, or the model is of another kind.
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
        self._kept: list[Generator] = [generator]  # a list, so that the state dict does not contain the model
        self._check_channels(generator)
        if generator.trained_side and generator.trained_side != max(size):
            logger.info("image=prior: trained on pictures of %d px; these have %dx%d px", generator.trained_side, *size)
        shape = generator.latent_shape(size)
        self.latents = nn.Parameter(streams.normal(shape, "start") if init is None else self._start(init, shape))
        self.project()

    def _check_channels(self, generator: Generator) -> None:
        if self.channels not in (GREY, RGB) or generator.channels not in (GREY, RGB):
            problem = f"the model's pictures have {generator.channels} channels, and the network takes {self.channels}"
            raise UsageError("image", "prior", problem)

    @torch.no_grad()
    def _start(self, init: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return the latents of pictures to start from, whose borders are repeated up to the model's size."""
        generator = self._kept[0].to(init.device)
        if generator.sampler is not None:
            raise UsageError("image.init", "an image", "must be noise: a diffusion model starts from nothing else")
        pictures = in_channels(self.preprocessing.denormalise(init).clamp(0, 1), generator.channels)
        factor = 2 ** _halvings(generator.autoencoder)
        rows, columns = shape[1] * factor - self.size[0], shape[2] * factor - self.size[1]
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return generator.encode(nn.functional.pad(pictures, sides, mode="replicate")).clone()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prior:
        """Move the model too, for instance to another device; it is no submodule."""
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
        """Return the gradient, set to 0 where a pixel at a bound would leave the valid range by a descent step."""
        return within_range(self.preprocessing, pictures, gradient)

    @torch.no_grad()
    def project(self) -> None:
        """Shorten the latents of a picture that are longer than ``radius`` times the root of their number."""
        if self.radius is not None:
            longest = self.radius * self.latents[0].numel() ** 0.5
            self.latents.copy_(self.latents.renorm(2, 0, longest) if len(self.latents) else self.latents)


def check_weights(weights: str | None) -> None:
    """Check that a generative model is named that is there.

    Raises:
        UsageError: none is named, or there is no such folder.
    """
    choice = f"{EMBEDDED} (for drawn images), or {WANTED}"
    if weights is None:
        raise UsageError(KEY, weights, f"{choice}, is needed", [EMBEDDED])
    if weights != EMBEDDED and not Path(str(weights)).expanduser().is_dir():
        raise UsageError(KEY, weights, f"no such folder, and nothing is downloaded; {choice}", [EMBEDDED])


def generator_of(weights: str | None, steps: int) -> Generator:
    """Load a generative model from a folder, or the embedded one; nothing is downloaded, and nothing unpickled.

    Raises:
        UsageError: no such folder, diffusers is not installed, or the model needs a text or is of another kind.
    """
    check_weights(weights)
    if weights == EMBEDDED:
        return Generator(embedded_prior(), None, {}, steps)
    folder = Path(str(weights)).expanduser()
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
    """Return folder and class of the autoencoder and of the sampler, by these two words; one of them may be missing."""
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
