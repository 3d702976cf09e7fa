"""Networks of other pictures than RGB: grey ones and some of five channels, through every command."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny import command, exit_code, tiny_net
from vital_exp import load_model, visualize
from vital_exp.attacks.detector import DetectorTraining, train_detector
from vital_exp.commands import audit, evaluate, mine, report
from vital_exp.errors import UsageError
from vital_exp.images.colours import covariance_root
from vital_exp.mining.images import ImageFolder
from vital_exp.models.channels import LUMINANCE, as_rgb, in_channels
from vital_exp.models.network import Preprocessing
from vital_exp.references.arrays import Loader, fit_array, load_array
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb
from vital_exp.references.files import PictureFiles
from vital_exp.setup.colours import _of_folder, channel_covariance

SIZE, CLASSES, EACH = 32, ("ash", "birch", "cedar", "dogwood"), 5
FIVE = {"mean": [0.5, 0.4, 0.5, 0.4, 0.5], "std": [0.25, 0.2, 0.25, 0.2, 0.25]}
FACTORY = '''
import torch
from torch import nn


def network(channels):
    """A network of some channels, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )


def read(path):
    import numpy as np

    return np.load(path).astype("float32")
'''


def of_channels(channels: int) -> nn.Module:
    """TinyNet with another first convolution."""
    network = tiny_net()
    network.conv1 = nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False)
    return network.eval()


@pytest.fixture
def place(workplace: Path) -> Path:
    """A factory, images, and arrays of five channels in four classes."""
    (workplace / "nets.py").write_text(FACTORY)
    numbers = np.random.default_rng(0)
    for name in CLASSES:
        for kind in ("photos", "bands"):
            (workplace / kind / name).mkdir(parents=True)
        for number in range(EACH):
            Image.fromarray(numbers.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(
                workplace / "photos" / name / f"{number}.png"
            )
            bands = numbers.integers(0, 4000, (5, 36, 40), dtype=np.uint16)
            np.save(workplace / "bands" / name / f"{number}.npy", bands)
    return workplace


def model(kind: str) -> list[str]:
    """The overrides that choose the network of a kind."""
    own = ["model=python", "model.factory=nets.py:network", f"model.size={SIZE}"]
    if kind == "grey":
        return [*own, "model.arguments={channels: 1}", "model.mean=[0.5]", "model.std=[0.25]"]
    numbers = [f"model.{key}={value}".replace(" ", "") for key, value in FIVE.items()]
    return [*own, "model.arguments={channels: 5}", *numbers, "model.value_range=[0,4000]", "model.preview=[4,2,0]"]


FOLDERS = {"grey": "photos", "five": "bands"}
QUIET = ("steps=2", "progress=false", "trainer.accelerator=cpu", "logger=none", "batch_size=2")


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_command(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, root = [*model(kind), f"references.root={FOLDERS[kind]}"], FOLDERS[kind]
    few = "references.count=3"
    for method in ("vital", "vital_fourier", "maco", "accentuation"):
        asked = (*QUIET, *own, few, f"method={method}", f"hydra.run.dir=runs/{method}", "image.init=mean", "movie=gif")
        assert command(*asked, "target.index=[0,2]", "views=1") == 0, capsys.readouterr().err
    hidden = (
        "target=channel",
        "target.layer='3'",
        "target.index=[1,2]",
        "method=vital_fourier",
        "evaluation.metrics=units",
    )
    assert command(*QUIET, *own, *hidden, few, "references.candidates=16", "hydra.run.dir=hidden") == 0
    circuit = ("target=circuit", "target.unit='3:1'", "target.layers=['2']", "target.width=1", "relevance=lrp")
    assert command(*QUIET, *own, *circuit, few, "method=vital_fourier", "hydra.run.dir=circuit", "evaluation=none") == 0
    assert command(*own, "list=layers") == 0
    assert command(*QUIET, *own, few, "dry_run=true") == 0
    mined = (*model(kind), f"images={root}", "layers=['3']", "k=4", "progress=false", "trainer.accelerator=cpu")
    assert exit_code(mine.main, *mined, "channels=0-2", "hydra.run.dir=mined") == 0
    concepts = ("concepts=pca", "concepts.count=2", "concepts.class=2", "hydra.run.dir=concepts")
    assert exit_code(mine.main, *mined, *concepts) == 0, capsys.readouterr().err
    for run in ("runs/vital", "hidden"):
        assert exit_code(evaluate.main, f"run={run}", "metrics=all", "trainer.accelerator=cpu") == 0
    _check_own_pictures_elsewhere(kind, capsys)
    checked = ("check=silent_units", "run=runs/vital", "count=4", "steps=1", "methods=[fourier]", "layer='0'")
    assert exit_code(audit.main, *checked) == 0, capsys.readouterr().err
    assert exit_code(report.main, "runs=runs") == 0
    _check_files(kind, capsys.readouterr().out)


def _check_own_pictures_elsewhere(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of a run in a plain folder are scored as in the run, whatever model.value_range says of files."""
    shutil.copytree("runs/vital/images", "plain")
    asked = (*model(kind), "pictures=plain", "metrics=[accuracy]", "trainer.accelerator=cpu", "hydra.run.dir=scored")
    assert exit_code(evaluate.main, *asked) == 0, capsys.readouterr().err
    texts = [Path(run, "metrics.json").read_text() for run in ("runs/vital", "scored")]
    inside, elsewhere = (json.loads(text)["probability"]["value"] for text in texts)
    assert elsewhere == pytest.approx(inside)


def _check_files(kind: str, told: str) -> None:
    """What a run of every kind leaves behind, and what its table says."""
    picture = Path("runs/vital/images/class-2.png")
    with Image.open(picture) as image, Image.open(picture.with_name("class-2_masked.png")) as masked:
        assert (image.mode, masked.mode) == (("L", "LA") if kind == "grey" else ("RGB", "RGBA"))
        shown = np.asarray(image)
    if kind == "five":
        array = np.load(picture.with_suffix(".npy"))
        assert (array.shape, array.dtype) == ((5, SIZE, SIZE), np.float32)
        np.testing.assert_array_equal(shown, np.rint(array[[4, 2, 0]] * 255).transpose(1, 2, 0))
    else:
        assert not picture.with_suffix(".npy").exists()
    metrics = json.loads(Path("runs/vital/metrics.json").read_text())
    assert metrics["high_frequency"]["value"] is not None
    assert ("needs RGB pictures, and these have 5 channels" in " ".join(told.split())) == (kind == "five")


def test_pictures_of_five_channels_in_python(tmp_path: Path) -> None:
    network = load_model(of_channels(5), size=SIZE, **FIVE)
    references = torch.rand(6, 5, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    quiet = ["evaluation=none", "logger=none", "progress=false"]
    keys = {"references": references, "steps": 3, "overrides": quiet}
    made = visualize(network, ["class:1", "class:3"], method="vital_fourier", out=tmp_path / "run", **keys)
    assert made.images.shape == (2, 5, SIZE, SIZE)
    again = visualize(network, ["class:1", "class:3"], method="vital_fourier", out=tmp_path / "run", **keys)
    torch.testing.assert_close(again.images, made.images, rtol=0, atol=0)  # read from the arrays
    with pytest.raises(UsageError, match=r"references=\(6, 3, 32, 32\): must have the shape \(B, 5, H, W\)"):
        visualize(network, "class:1", references=references[:, :3], steps=1)


def test_grey_is_luminance_as_pillow_has_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ours = PictureFiles(1, (SIZE, SIZE)).load(tmp_path / "a.png")
    pillow = np.asarray(Image.fromarray(pixels).convert("L")) / 255
    np.testing.assert_allclose(ours[0].numpy(), pillow, atol=1.01 / 255)  # Pillow truncates a fixed-point sum
    assert sum(LUMINANCE) == pytest.approx(1)
    rgb = torch.rand(2, 3, 4, 4)
    assert in_channels(rgb, 1).shape == (2, 1, 4, 4)
    assert torch.equal(in_channels(rgb[:, :1], 3), rgb[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(as_rgb(rgb[:, :2]), rgb[:, [0, 1, 1]])
    with pytest.raises(UsageError, match="takes pictures of 5 channels"):
        in_channels(rgb, 5)


def test_an_rgb_network_and_its_grey_twin_see_the_same_grey_picture() -> None:
    """A first convolution summed over colours reads grey as the original reads it in three equal channels."""
    rgb, grey = tiny_net(), of_channels(1)
    grey.load_state_dict({**rgb.state_dict(), "conv1.weight": rgb.conv1.weight.sum(dim=1, keepdim=True)})
    own = {"mean": [0.5] * 3, "std": [0.2] * 3}
    networks = load_model(rgb, size=SIZE, **own), load_model(grey, size=SIZE, mean=[0.5], std=[0.2])
    picture = torch.rand(2, 1, SIZE, SIZE)
    torch.testing.assert_close(networks[0](picture), networks[1](picture), rtol=1e-4, atol=1e-5)


def test_the_channels_root_is_a_root_of_their_covariance() -> None:
    mixing = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pictures = [(mixing @ torch.randn(4, 400, dtype=torch.float64)).view(4, 20, 20) for _ in range(3)]
    covariance = channel_covariance(pictures)
    pixels = torch.cat([picture.flatten(1) for picture in pictures], dim=1)
    np.testing.assert_allclose(covariance, np.cov(pixels.numpy(), bias=True), rtol=1e-9)
    root = covariance_root(covariance).double()
    product = root @ root.T
    torch.testing.assert_close(product / product.norm(), covariance / covariance.norm(), rtol=1e-5, atol=1e-6)
    assert float(root.norm(dim=0).max()) == pytest.approx(1, rel=1e-5)


def test_fourier_pictures_have_the_channels_of_their_references() -> None:
    """Two channels that always agree in the references agree in the picture too."""
    network = load_model(of_channels(2), size=SIZE, mean=[0.5] * 2, std=[0.25] * 2)
    one = torch.rand(6, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    keys = {"method": "fourier", "steps": 20, "overrides": ["evaluation=none", "logger=none", "progress=false"]}

    def correlation(references: Tensor) -> float:
        made = visualize(network, "class:1", references=references, **keys).images[0]
        return float(torch.corrcoef(made.flatten(1))[0, 1])

    assert correlation(one.expand(-1, 2, -1, -1).contiguous()) > 0.99
    assert correlation(torch.rand(6, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))) < 0.9


@pytest.mark.parametrize("resize", [None, 40])
@pytest.mark.parametrize("shape", [(50, 70), (32, 32), (20, 24)])
def test_arrays_are_cropped_as_images(shape: tuple[int, int], resize: int | None, tmp_path: Path) -> None:
    """A smooth picture, so that Pillow's rounding to 8 bits between its two passes does not show."""
    rows, columns = (np.linspace(0, 1, side)[:, None] for side in shape)
    smooth = np.stack([rows * columns.T, rows * np.ones_like(columns.T), np.ones_like(rows) * columns.T])
    pixels = np.rint(smooth * 255).astype(np.uint8)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
    ours = fit_array(torch.from_numpy(pixels / np.float32(255)), (32, 32), resize, "bilinear")
    theirs = fit(load_rgb(tmp_path / "a.png"), 32, resize)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.5 / 255)


def test_arrays_from_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", image=values)
    np.save(tmp_path / "bytes.npy", np.full((5, 6, 7), 51, np.uint8))
    np.save(tmp_path / "words.npy", (values * 8000).astype(np.uint16))
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(load_array(tmp_path / name, 5, None), values)
    assert torch.equal(load_array(tmp_path / "bytes.npy", 5, None), torch.full((5, 6, 7), 0.2))
    np.testing.assert_allclose(load_array(tmp_path / "words.npy", 5, (0, 8000)), values, atol=1.1 / 8000)
    np.save(tmp_path / "far.npy", values.astype(np.float64) + 1e9)  # whose steps are 64 in float32
    np.testing.assert_allclose(load_array(tmp_path / "far.npy", 5, (1e9, 1e9 + 1)), values, atol=1e-6)
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "planes.tif", values, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "pixels.tif", values.transpose(1, 2, 0), photometric="minisblack")
    for name in ("planes.tif", "pixels.tif"):
        np.testing.assert_array_equal(load_array(tmp_path / name, 5, None), values)


BROKEN = {
    "shape": (np.zeros((3, 4, 4), np.float32), "has the shape 3x4x4: 5 x height x width is needed"),
    "channels last": (np.zeros((4, 4, 5), np.float32), "channels come first"),
    "NaN": (np.full((5, 4, 4), np.nan, np.float32), "holds NaN or infinite values"),
    "complex": (np.zeros((5, 4, 4), np.complex64), "holds complex64: real numbers are needed"),
    "range": (np.full((5, 4, 4), 3000.0), r"values from 3000 to 3000; model.value_range=\[low, high\]"),
    "long integers": (np.zeros((5, 4, 4), np.int64), r"holds int64: model.value_range=\[low, high\]"),
}


@pytest.mark.parametrize(("array", "told"), BROKEN.values(), ids=BROKEN)
def test_arrays_that_are_no_pictures(array: np.ndarray, told: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(CorruptImageError, match=told):
        load_array(tmp_path / "a.npy", 5, None)
    loader = Loader("own.py:read", lambda path: np.load(path), "references.loader")
    with pytest.raises(
        UsageError, match=rf"references.loader=own.py:read: returned no valid picture for a.npy: .*{told}"
    ):
        load_array(tmp_path / "a.npy", 5, None, loader)


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    told_of = {"objects.npy": "pickle", "two.npz": "holds a, b: one array is needed", "torn.npy": None}
    told_of["photo.png"] = "pictures of this network are arrays: .npy, .npz, .tif, .tiff"
    for name, told in told_of.items():
        with pytest.raises(CorruptImageError, match=told):
            load_array(tmp_path / name, 5, None)
    with pytest.raises(UsageError, match=r"returned str for torn\.npy: an array"):
        load_array(tmp_path / "torn.npy", 5, None, Loader("own.py:read", lambda path: "text", "references.loader"))
    with pytest.raises(CorruptImageError, match=r"own\.py:read raised ValueError"):
        load_array(tmp_path / "torn.npy", 5, None, Loader("own.py:read", np.load, "references.loader"))


MISTAKES = {
    "no mean": ((5, {}), r"model.mean=None: 5 values, one per channel of its pictures in \[0, 1\]"),
    "no deviation": ((5, {"mean": [0.5] * 5}), r"model.std=None: 5 values"),
    "short mean": ((5, {**FIVE, "mean": [0.5] * 3}), r"model.mean=\[0.5, 0.5, 0.5\]: 5 values, one per channel"),
    "preview of RGB": (
        (3, {"preview": [2, 1, 0]}),
        r"model.preview=\[2, 1, 0\]: .* takes RGB pictures, which are shown whole",
    ),
    "preview": ((5, {**FIVE, "preview": [0, 1, 5]}), r"model.preview=\[0, 1, 5\]: three channels from 0 to 4"),
    "range": ((5, {**FIVE, "value_range": [1, 1]}), r"model.value_range=\[1.0, 1.0\]: \[low, high\], the lower"),
    "channels": ((5, {**FIVE, "channels": 0}), r"model.channels=0"),
}


@pytest.mark.parametrize(("asked", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_about_channels(asked: tuple[int, dict[str, object]], told: str) -> None:
    channels, keys = asked
    with pytest.raises(UsageError, match=told):
        load_model(of_channels(channels), size=SIZE, **keys)


def test_mistakes_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = (*QUIET, *model("five"), "target.index=0", "references.count=3", "evaluation=none")
    mistakes = {
        ("references.root=photos",): "references.root=photos: holds no arrays of 5 channels (.npy, .npz, .tif)",
        (
            "references.root=bands",
            "references.loader=nets.py:reed",
        ): "references.loader=nets.py:reed: nets.py has no reed",
        ("references=embedded",): "references=embedded: the embedded images are RGB",
        (
            "references.root=bands",
            "method=fourier",
            "image.colours=imagenet",
        ): "image.colours=imagenet: one of auto, references",
    }
    for asked, told in mistakes.items():
        assert command(*own, *asked) == 2
        assert told in capsys.readouterr().err
    assert command(*own, "references.root=bands", "references.loader=nets.py:read", "hydra.run.dir=loaded") == 0
    grey = (*QUIET, *model("grey"), "target.index=0", "references.root=photos", "model.value_range=[0,4095]")
    assert command(*grey) == 2  # as somebody wants whose files have 12 of 16 bits
    assert "model.value_range=[0.0, 4095.0]: the network takes grey images" in capsys.readouterr().err
    judge = "evaluation.judges=[embedded_resnet]"
    assert command(*own[:-1], "references.root=bands", judge, "evaluation=basic") == 2
    assert "the judge" in capsys.readouterr().err


def test_a_detector_takes_the_channels_of_its_images() -> None:
    images = torch.rand(4, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    short = DetectorTraining(epochs=1, least_updates=0, batch_size=4)
    assert train_detector(images, 1 - images, training=short).natural(images).shape == (4,)


def test_grey_without_a_mean_is_told(caplog: pytest.LogCaptureFixture) -> None:
    network = load_model(of_channels(1), size=SIZE)
    assert network.preprocessing.mean == (0.449,)
    assert network.preprocessing.std == (0.226,)
    assert "takes grey pictures: model.mean=[0.449] and model.std=[0.226]" in caplog.text
    caplog.clear()
    for key in ("mean", "std"):
        with pytest.raises(UsageError, match=rf"model\.{key}=\[0\.5, 0\.5, 0\.5\]: 1 value"):
            load_model(of_channels(1), size=SIZE, **{key: [0.5] * 3})  # type: ignore[arg-type]
    assert not caplog.text


def test_what_is_said_of_colours_that_cannot_be_measured(caplog: pytest.LogCaptureFixture) -> None:
    asked = ["steps=1", "evaluation=none", "image.colours=references", "image.size=32"]
    with caplog.at_level("WARNING"):
        visualize(load_model(of_channels(3), size=SIZE), "class:0", method="fourier", overrides=asked)
    assert "no references to measure the covariance of its channels on; ImageNet's covariance is used" in caplog.text


def test_a_loader_of_a_module_is_another_when_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loader_module.py").write_text("def read(path): ...\n")
    monkeypatch.chdir(tmp_path)
    loader = Loader.named("own_loader_module:read", "references.loader")
    before = loader.described
    os.utime(tmp_path / "own_loader_module.py", (1, 1))
    assert loader.described != before


class HalfAndFull(nn.Module):
    """A convolution in half precision, a classifier in float32; the cast between them is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 8, 3).half(), nn.Linear(8, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc(self.stem(pictures).float().mean((2, 3)))  # type: ignore[no-any-return]


def test_a_grey_network_of_two_precisions_takes_its_own() -> None:
    network = load_model(HalfAndFull(), size=SIZE, mean=[0.5], std=[0.25])
    assert network.entrance == torch.float16
    assert network(torch.rand(2, 1, SIZE, SIZE)).shape == (2, 4)


def test_a_folder_none_of_whose_arrays_can_be_read_has_no_covariance(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8)))
    folder = ImageFolder(tmp_path, Preprocessing((0.5,) * 5, (0.2,) * 5, (SIZE, SIZE)), "references.root")
    with pytest.raises(UsageError, match=r"references\.root=.*: none of the 1 images that were tried can be read"):
        _of_folder(folder, tmp_path / "cache")
