"""Image files of every kind, and the way from a picture to a tensor."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor

from vital_exp.errors import UsageError
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb, printable


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    """A smooth RGB picture whose corners differ, so that turns and mirrors show."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def assert_close(path: Path, expected: Image.Image, tolerance: int = 0) -> None:
    decoded = load_rgb(path)
    assert decoded.mode == "RGB"
    assert decoded.size == expected.size
    assert np.abs(pixels(decoded) - pixels(expected.convert("RGB"))).max() <= tolerance


FORMATS = ("png", "bmp", "tiff", "ppm", "gif")


@pytest.mark.parametrize(("suffix", "mode"), [(s, m) for s in FORMATS for m in "1LP" if s + m != "ppmP"])
def test_grey_and_palette(tmp_path: Path, suffix: str, mode: str) -> None:
    image = picture().convert(mode)
    assert_close(saved(image, tmp_path / f"x.{suffix}"), image)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257], [32896, 65406, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"x.{suffix}")
    assert pixels(load_rgb(path))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_16_bit_grey_of_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 7))
    assert pixels(load_rgb(path))[..., 0].tolist() == [[255, 7]]


def test_float_grey_is_in_unit_range_or_bytes(tmp_path: Path) -> None:
    unit = saved(Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), tmp_path / "unit.tiff")
    byte = saved(Image.fromarray(np.array([[0.0, np.nan, 300.0]], dtype=np.float32)), tmp_path / "byte.tiff")
    assert pixels(load_rgb(unit))[..., 0].tolist() == [[0, 51, 255]]
    assert pixels(load_rgb(byte))[..., 0].tolist() == [[0, 0, 255]]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 24).astype(np.uint8), (16, 1))))
    decoded = pixels(load_rgb(saved(rgba, tmp_path / "x.png")))
    values = pixels(rgba)
    alpha = values[..., 3:] / 255
    assert np.abs(decoded - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    assert (decoded[:, 0] == 255).all()


@pytest.mark.parametrize(("mode", "colour"), [("LA", None), ("L", 0), ("P", 0), ("RGB", (0, 0, 0))])
def test_transparent_colours_lie_on_white(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new("RGB", (4, 4), "black").convert(mode)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    if mode == "LA":
        image.putalpha(0)
    assert (pixels(load_rgb(saved(image, tmp_path / "x.png", transparency=colour))) == 255).all()


def test_palette_with_transparency_bytes(tmp_path: Path) -> None:
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    path = saved(image, tmp_path / "x.png", transparency=bytes([0, 255, 255, 255]))
    hidden = np.asarray(image) == 0
    decoded = pixels(load_rgb(path))
    assert (decoded[hidden] == 255).all()
    assert (decoded[~hidden] == pixels(image.convert("RGB"))[~hidden]).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = picture(64, 48)
    path = saved(image.convert("CMYK"), tmp_path / "x.jpg", quality=95)
    assert b"Adobe" in path.read_bytes()[:200]  # the inverted kind
    assert_close(path, image, tolerance=12)


def test_cmyk_tiff(tmp_path: Path) -> None:
    assert_close(saved(picture().convert("CMYK"), tmp_path / "x.tif"), picture(), tolerance=1)


# EXIF 2.32, 4.6.4: where row 0 and column 0 of the stored picture lie, written with numpy.
UNDO: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 3),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = picture(64, 40)
    stored = np.ascontiguousarray(UNDO[orientation](np.asarray(image)))  # what the camera stores
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(stored), tmp_path / f"x.{suffix}", exif=exif, **options)
    assert_close(path, image, tolerance=16 if suffix == "jpg" else 0)


def test_unreadable_exif_does_not_lose_the_image(tmp_path: Path) -> None:
    path = saved(picture(), tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_rgb(path).size == (24, 16)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert_close(path, frames[0])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def broken_files(folder: Path) -> dict[str, bytes]:
    jpeg = saved(picture(200, 200), folder / "whole.jpg").read_bytes()
    png = saved(picture(200, 200), folder / "whole.png").read_bytes()
    gif = saved(picture(200, 200), folder / "whole.gif").read_bytes()
    return {
        "empty.jpg": b"",
        "text.png": b"this is no picture",
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "short.jpg": jpeg[: len(jpeg) // 2],
        "short.png": png[: len(png) // 2],
        "short.gif": gif[: len(gif) // 2],
        "scrambled.png": png[:60] + bytes(200) + png[260:],
        "flat.png": png_header(0, 5) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "bomb.png": png_header(60_000, 60_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "large.png": png_header(10_000, 10_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "flat.pgm": b"P5 0 0 255\n",
        "short.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        "short.bmp": b"BM" + bytes(20),
        "short.tif": b"II*\x00\x08\x00\x00\x00",
    }


def test_broken_files_are_named(tmp_path: Path) -> None:
    for name, content in broken_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CorruptImageError, match=name) as caught:
            load_rgb(path)
        assert caught.value.path == path
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(CorruptImageError):
            load_rgb(path)


ODD_NAMES = ("a\nb.png", "quo\"te's.png", "🦓 zebra.png", "back\\slash.png", "bad\udcff.png")


def test_odd_file_names(tmp_path: Path) -> None:
    # macOS refuses names that are not UTF-8.
    for name in ODD_NAMES[: -1 if sys.platform == "darwin" else None]:
        assert load_rgb(saved(picture(), tmp_path / name)).size == (24, 16)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(CorruptImageError) as caught:
            load_rgb(tmp_path / name)
        str(caught.value).encode("utf-8")
    assert printable("a\nb\udcff🦓") == "a\\nb\\udcff🦓"


# Resizing and cropping.


def torchvision_fit(image: Image.Image, size: int | tuple[int, int], resize: int, interpolation: str) -> torch.Tensor:
    mode = v2.InterpolationMode(interpolation)
    cropped = v2.CenterCrop(size)(v2.Resize(resize, mode)(image))
    return to_tensor(cropped)  # v2.ToDtype multiplies by 1/255 and is one rounding away


SIDES = st.integers(1, 90)


@settings(deadline=None, max_examples=200)
@given(
    width=SIDES,
    height=SIDES,
    size=st.one_of(st.integers(1, 64), st.tuples(st.integers(1, 64), st.integers(1, 64))),
    resize=st.integers(1, 80),
    interpolation=st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
)
def test_fit_equals_torchvision(
    width: int, height: int, size: int | tuple[int, int], resize: int, interpolation: str
) -> None:
    if max(width, height) > 64 * min(width, height):
        return  # cut to its middle first, see below
    image = picture(width, height, seed=width)
    expected = torchvision_fit(image, size, resize, interpolation)
    fitted = fit(image, size, resize, interpolation)
    assert fitted.dtype == torch.float32
    assert fitted.is_contiguous()
    assert torch.equal(fitted, expected)


@settings(deadline=None)
@given(width=SIDES, height=SIDES, size=st.integers(1, 64))
def test_without_margin_the_shorter_side_is_the_size(width: int, height: int, size: int) -> None:
    image = picture(width, height)
    if max(width, height) <= 64 * min(width, height):
        assert torch.equal(fit(image, size), torchvision_fit(image, size, size, "bilinear"))


@settings(deadline=None)
@given(width=SIDES, height=SIDES, size=st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_without_margin_nothing_is_padded(width: int, height: int, size: tuple[int, int]) -> None:
    fitted = fit(Image.new("RGB", (width, height), "white"), size)
    assert fitted.shape == (3, *size)
    assert (fitted == 1).all()


def test_the_published_preparation(tmp_path: Path) -> None:
    image = picture(500, 375)
    assert torch.equal(fit(image, 224, 256), torchvision_fit(image, 224, 256, "bilinear"))


def test_an_extreme_strip_does_not_take_the_memory() -> None:
    strip = Image.fromarray(np.tile(np.array([255, 0, 0], dtype=np.uint8), (1, 60_000, 1)))
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        fitted = fit(image, 32, 36)
        assert torch.equal(fitted, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 32, 32))


def test_unknown_interpolation() -> None:
    with pytest.raises(UsageError, match="bilinear"):
        fit(picture(), 8, interpolation="bilinaer")
