"""Pictures as latents of models of diffusers: ranges, sizes, the sampler's formula, what the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import ON_CPU, SHORT, command, tiny_net
from vital_exp import load_model, visualize
from vital_exp.images.prior import Prior, generator_of
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing

diffusers = pytest.importorskip("diffusers", reason="the extra prior")

STREAMS = RandomStreams(0, ["class-0", "class-1"])
BLOCKS = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_vae(tmp_path_factory.mktemp("vae"))


def saved_vae(folder: Path, channels: int = 3, **keys: Any) -> Path:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        *(channels, channels), *BLOCKS, (8, 8), 1, latent_channels=2, norm_num_groups=4, sample_size=16,
        mid_block_add_attention=False, **{"scaling_factor": 0.5, **keys},
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


def preprocessing(channels: int = 3) -> Preprocessing:
    return Preprocessing((0.4,) * channels, (0.2,) * channels, (16, 16))


def test_latents_are_decoded_and_the_range_is_that_of_pictures(vae: Path) -> None:
    """Twin: the library's own decoder; scaling_factor and [-1, 1] by hand."""
    own = Prior(preprocessing(), (16, 16), STREAMS, weights=str(vae))
    model = diffusers.AutoencoderKL.from_pretrained(vae)
    assert own.latents.shape == (2, 2, 8, 8)
    decoded = model.decode(own.latents / 0.5).sample
    torch.testing.assert_close(own(), (decoded / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(own.network_input(), (own() - 0.4) / 0.2)
    assert list(own.state_dict()) == ["latents"]
    assert [name for name, _ in own.named_parameters()] == ["latents"]
    (gradient,) = torch.autograd.grad(own.network_input().sum(), own.latents)
    assert float(gradient.abs().sum()) > 0


def test_a_picture_to_start_from_is_encoded(vae: Path, tmp_path: Path) -> None:
    pictures = torch.rand(2, 3, 16, 16)
    shifted = saved_vae(tmp_path / "shifted", shift_factor=0.25)
    own = Prior(preprocessing(), (16, 16), STREAMS, (pictures - 0.4) / 0.2, weights=str(shifted), radius=None)
    model = diffusers.AutoencoderKL.from_pretrained(shifted)
    code = model.encode(pictures * 2 - 1).latent_dist.mean
    torch.testing.assert_close(own.latents.detach(), ((code - 0.25) * 0.5).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own(), (model.decode(code).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(17, 16), (16, 30), (5, 9)])
def test_sizes_that_are_no_multiples_are_cut_from_the_middle(vae: Path, size: tuple[int, int]) -> None:
    own = Prior(preprocessing(), size, STREAMS, weights=str(vae))
    assert own().shape == (2, 3, *size)
    started = Prior(preprocessing(), size, STREAMS, torch.rand(2, 3, *size), weights=str(vae))
    assert started().shape == (2, 3, *size)


@pytest.mark.parametrize(("network", "model"), [(1, 3), (3, 1), (1, 1)])
def test_grey(network: int, model: int, tmp_path: Path) -> None:
    folder = saved_vae(tmp_path / "vae", model)
    own = Prior(preprocessing(network), (16, 16), STREAMS, torch.rand(2, network, 16, 16), weights=str(folder))
    made = own.network_input()
    assert made.shape == (2, network, 16, 16)
    if (network, model) == (3, 1):
        torch.testing.assert_close(made[:, 0], made[:, 2])


def test_latents_stay_in_the_ball_and_pictures_alone_are_those_of_a_batch(vae: Path) -> None:
    own = Prior(preprocessing(), (16, 16), STREAMS, weights=str(vae), radius=0.5)
    assert own.latents.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5 * 128**0.5] * 2)
    with torch.no_grad():
        own.latents.mul_(0.1)
    own.project()
    assert own.latents.flatten(1).norm(dim=1).tolist() == pytest.approx([0.05 * 128**0.5] * 2)
    alone = Prior(preprocessing(), (16, 16), RandomStreams(0, ["class-1"]), weights=str(vae), radius=0.5)
    torch.testing.assert_close(alone.latents[0] * 0.1, own.latents[1])


def test_sampling_is_ddim(pipeline: Path) -> None:
    """Twin: x' = sqrt(a') x0 + sqrt(1 - a') e, x0 = (x - sqrt(1 - a) e) / sqrt(a) (Song et al. 2021, equation 12)."""
    own = Prior(preprocessing(), (16, 16), STREAMS, weights=str(pipeline), sampling_steps=4, radius=None)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x = own.latents.detach()
    with torch.no_grad():
        for step in (750, 500, 250, 0):
            error = unet(x, step).sample
            now, then = share[step], share[step - 250] if step >= 250 else torch.tensor(1.0)
            x = then.sqrt() * (x - (1 - now).sqrt() * error) / now.sqrt() + (1 - then).sqrt() * error
    torch.testing.assert_close(own().detach(), (x / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-3)
    (gradient,) = torch.autograd.grad(own().sum(), own.latents)
    assert gradient.isfinite().all()


def test_any_method_makes_pictures(vae: Path, pipeline: Path, workplace: Path) -> None:
    own = load_model(tiny_net(), size=16)
    references = torch.rand(4, 3, 16, 16)
    for method, folder in (("vital_fourier", vae), ("fourier", vae), ("fourier", pipeline)):
        asked = ["image=prior", f"image.weights={folder}", "evaluation=none", "logger=none", "progress=false"]
        made = visualize(own, ["class:1"], method=method, references=references, steps=3, overrides=asked)
        assert made.images.shape == (1, 3, 16, 16)
        assert 0 <= float(made.images.min()) < float(made.images.max()) <= 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], ("image.weights=None", "diffusers")),
        (["weights=nowhere"], ("image.weights=nowhere", "no such folder")),
        (["weights=empty"], ("image.weights=empty", "config.json")),
        (["weights=text"], ("image.weights=text", "needs a text", "text/vae")),
        (["weights={vae}", "radius=0"], ("image.radius=0", "above 0")),
        (["weights={vae}", "sampling_steps=0"], ("image.sampling_steps=0", "at least 1")),
        (["weights={pipeline}", "init=reference"], ("image.init", "noise")),
    ],
)
def test_mistakes_are_one_line(
    keys: list[str],
    words: tuple[str, ...],
    vae: Path,
    pipeline: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workplace / "empty").mkdir()
    (workplace / "text").mkdir()
    (workplace / "text" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    asked = [f"image.{key.format(vae=vae, pipeline=pipeline)}" for key in keys]
    code = command(*SHORT, *ON_CPU, "method=fourier", "image=prior", *asked, "hydra.run.dir=run")
    told = capsys.readouterr().err
    assert code == 2, told
    assert all(word in told for word in words), told
    assert "Traceback" not in told


def test_a_changed_folder_is_loaded_anew(tmp_path: Path) -> None:
    folder = saved_vae(tmp_path / "vae")
    first = generator_of(str(folder), 4)
    assert generator_of(str(folder), 4) is first
    saved_vae(folder, scaling_factor=2.0)
    assert generator_of(str(folder), 4) is not first
