"""Sparse autoencoders in the formats of the libraries that train them (saev, Prisma, SAELens).

A configuration in or beside the file gives every setting that :class:`SparseAutoencoder` needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.targets.autoencoder import (
    AS_IT_IS,
    BATCH_TOP_K,
    CONSTANT_NORM,
    JUMP_RELU,
    KEY,
    LAYER_NORM,
    RELU,
    TOP_K,
    SparseAutoencoder,
)
from vital_exp.text_files import read_json
from vital_exp.values import is_whole
from vital_exp.weights_files import read_tensors, tensors_of

SAEV, PRISMA, SAELENS = "saev", "prisma", "saelens"
FORMATS = (SAEV, PRISMA, SAELENS)
SAELENS_WEIGHTS, SAELENS_CONFIG, PRISMA_CONFIG = "sae_weights.safetensors", "cfg.json", "config.json"
INNER = "state_dict."  # prefix of the weights in a file that holds more than weights
GATED, SCALED = "gated", "expected_average_only_in"
# The libraries' names of g (the activation) and n (the normalisation).
ACTIVATION_NAMES = {"standard": RELU, "topk": TOP_K, "jumprelu": JUMP_RELU, GATED: GATED}
PRISMA_ARCHITECTURES = ("standard", GATED)
SAEV_NAMES = {"Relu": RELU, "TopK": TOP_K, "BatchTopK": BATCH_TOP_K}
SAEV_SCHEMAS = (None, 1, 2, 3, 4, 5)
NORMALISATIONS: dict[object, str] = {
    **{None: AS_IT_IS, False: AS_IT_IS, "none": AS_IT_IS, True: SCALED, SCALED: SCALED},
    **{"layer_norm": LAYER_NORM, "constant_norm_rescale": CONSTANT_NORM},
}


@dataclass(frozen=True)
class Description:
    """The settings in a file's configuration.

    Attributes:
        activation: as for :class:`SparseAutoencoder`, or ``"gated"``.
        k: for ``"topk"`` and ``"batch_topk"``.
        subtracts: whether the decoder's bias is subtracted before the encoder.
        normalisation: as for :class:`SparseAutoencoder`, or ``"expected_average_only_in"``: activations are multiplied
            by a factor that the file does not hold.
        rectified: as for :class:`SparseAutoencoder`.
        by_decoder_norm: whether each feature is multiplied by the norm of its row of the decoder before g.
    """

    activation: str
    k: int | None
    subtracts: bool
    normalisation: str = AS_IT_IS
    rectified: bool = True
    by_decoder_norm: bool = False


def detect(path: Path) -> str | None:
    """Return the format of a file or folder, from its first byte and the configuration beside it; None: not known."""
    if path.is_dir() or (path.name == SAELENS_WEIGHTS and (path.parent / SAELENS_CONFIG).is_file()):
        return SAELENS
    with path.open("rb") as file:
        if file.read(1) == b"{":
            return SAEV
    return PRISMA if (path.parent / PRISMA_CONFIG).is_file() and _is_prisma(path.parent / PRISMA_CONFIG) else None


def load_published(path: Path, form: str, layer: str, channels: int, *, scaled: bool) -> SparseAutoencoder:
    """Load an autoencoder in one of FORMATS.

    Args:
        path: the file; for SAELens also the folder.
        form: one of FORMATS.
        layer, channels: the layer that the autoencoder reads, and the number of its channels.
        scaled: whether ``target.scale`` is set.

    Raises:
        UsageError: a file of another format (its tensors are listed) or width, an unknown version or kind, or a
            configuration without a setting that is needed.
    """
    if form == SAEV:
        description, tensors = _saev(path)
    else:
        folder = path if path.is_dir() else path.parent
        config = folder / (SAELENS_CONFIG if form == SAELENS else PRISMA_CONFIG)
        description = _described(_settings(config, form), form, config)
        tensors = autoencoder_tensors(folder / SAELENS_WEIGHTS if path.is_dir() else path)
    if description.normalisation == SCALED and not scaled:
        problem = f"{form} multiplied activations by a factor that the file does not hold ({SCALED}): give the factor"
        raise UsageError("target.scale", None, problem)
    return _built(description, tensors, path, form, layer, channels)


def autoencoder_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an autoencoder's file by name, without the prefix of a nested ``state_dict``.

    Raises:
        UsageError: see :func:`vital_exp.weights_files.read_tensors`.
    """
    return {name.removeprefix(INNER): tensor for name, tensor in read_tensors(path, KEY).items()}


# The configuration of each format.


def _settings(place: Path, form: str) -> dict[str, Any]:
    if not place.is_file():
        raise UsageError("target.format", form, f"{place.name} is needed beside the weights, and is not there")
    settings = read_json(place, KEY)
    if not isinstance(settings, dict):
        raise UsageError(KEY, place, "is not a configuration: a JSON object is needed")
    return settings


def _is_prisma(place: Path) -> bool:
    settings = read_json(place, KEY)
    return isinstance(settings, dict) and {"architecture", "activation_fn_str"} <= set(settings)


def _described(settings: Mapping[str, Any], form: str, place: Path) -> Description:
    """Return the settings of SAELens' or Prisma's configuration, which lies at ``place``."""
    function = settings.get("activation_fn", settings.get("activation_fn_str"))
    architecture = settings.get("architecture") or (None if function is None else "standard")
    known = PRISMA_ARCHITECTURES if form == PRISMA else tuple(ACTIVATION_NAMES)
    if architecture not in known or settings.get("is_transcoder"):
        kind = "a transcoder" if settings.get("is_transcoder") else f"architecture {architecture}"
        raise UsageError(KEY, place, f"is {kind}; autoencoders of architecture {', '.join(known)} can be read")
    if settings.get("finetuning_scaling_factor"):
        raise UsageError(KEY, place, "finetuning_scaling_factor is not read; fold it into the decoder")
    extra = settings.get("activation_fn_kwargs") or {}
    k = settings.get("k", extra.get("k"))
    activation = ACTIVATION_NAMES[architecture]
    if function == "topk" and activation == RELU:
        activation = TOP_K
    elif function not in (None, "relu") and not (function == "topk" and activation == TOP_K):
        raise UsageError(KEY, place, f"the activation {function} with architecture {architecture} is not known")
    if form == PRISMA and activation == RELU and function is None:
        raise UsageError(KEY, place, "does not say its activation_fn_str")
    return Description(
        activation,
        _k(k, place) if activation == TOP_K else None,
        form == PRISMA or settings.get("apply_b_dec_to_input", True) is True,
        _normalisation(settings, form, place),
        by_decoder_norm=activation == TOP_K and settings.get("rescale_acts_by_decoder_norm") is True,
    )


def _normalisation(settings: Mapping[str, Any], form: str, place: Path) -> str:
    name = settings.get("normalize_activations")
    if form == PRISMA and name is None:
        raise UsageError(KEY, place, "does not say its normalize_activations")
    if not isinstance(name, (str, bool, type(None))) or name not in NORMALISATIONS:
        raise UsageError(KEY, place, f"normalize_activations={name} is not known")
    return NORMALISATIONS[name]


def _saev(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """Read a file of saev: a line of JSON, then the state_dict as torch.save writes it.

    Until July 2025 (no schema, or schema 1 with the class of the activation) saev subtracted the decoder's bias.
    """
    line, _, content = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UsageError("target.format", SAEV, f"{path} does not begin with saev's line of JSON")
    schema = header.get("schema")
    if schema not in SAEV_SCHEMAS:
        raise UsageError(KEY, path, f"has saev's schema {schema}; 1 to 5, or no schema, can be read")
    settings = header if schema is None else header.get("cfg")
    named = settings.get("activation") if isinstance(settings, dict) else None
    old = schema is None or (schema == 1 and header.get("cls") in SAEV_NAMES)
    if old:
        named = {"cls": header.get("cls", "Relu"), "params": settings}
    if not isinstance(named, dict) or named.get("cls") not in SAEV_NAMES:
        name = named.get("cls") if isinstance(named, dict) else named
        raise UsageError(KEY, path, f"has saev's activation {name}; {', '.join(SAEV_NAMES)} can be read")
    activation = SAEV_NAMES[named["cls"]]
    params = named.get("params")
    k = params.get("top_k") if isinstance(params, dict) else None
    k = None if activation == RELU else _k(k, path)
    return Description(activation, k, subtracts=old, rectified=activation == RELU), tensors_of(content, path, KEY)


def _k(k: object, place: Path) -> int:
    if not is_whole(k, 1):
        raise UsageError(KEY, place, f"has k={k}; a whole number of at least 1 is needed")
    return k


# The autoencoder.


def _built(
    description: Description, tensors: Mapping[str, Tensor], path: Path, form: str, layer: str, channels: int
) -> SparseAutoencoder:
    """Return the autoencoder; all three formats store W_enc (C, F), W_dec (F, C), and the biases."""
    biases = ("b_gate", "b_mag", "r_mag") if description.activation == GATED else ("b_enc",)
    needed = ("W_enc", "W_dec", "b_dec", *biases)
    if missing := [name for name in needed if name not in tensors]:
        problem = f"{path} has no tensor {missing[0]}; it has {', '.join(sorted(tensors))}"
        raise UsageError("target.format", form, problem)
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    width, count = _shape(floats["W_enc"], path)
    if width != channels:
        raise UsageError(KEY, path, f"has another width: it reads {width} channels, and {layer} has {channels}")
    shapes = {"W_enc": (width, count), "W_dec": (count, width), "b_dec": (width,)} | dict.fromkeys(biases, (count,))
    for name, shape in shapes.items():
        _check(floats[name], shape, name, path)
    k = description.k
    if k is not None and k > count:
        raise UsageError(KEY, path, f"has k={k}, and only {count} features")
    encoder, bias, decoder = floats["W_enc"].T.contiguous(), floats.get("b_enc"), floats["W_dec"]
    activation, threshold = _activation(description, floats, count, path)
    if description.activation == GATED:
        # (W a + b_gate > 0) max(0, e^r W a + b_mag) is a JumpReLU (Rajamanoharan et al. 2024, section 3.2).
        encoder, bias = floats["r_mag"].exp()[:, None] * encoder, floats["b_mag"]
    if description.by_decoder_norm:
        norms = decoder.norm(dim=1, keepdim=True)
        encoder, bias, decoder = encoder * norms, floats["b_enc"] * norms[:, 0], decoder / norms
    assert bias is not None
    shift = floats["b_dec"] if description.subtracts else torch.zeros(width)
    normalisation = AS_IT_IS if description.normalisation == SCALED else description.normalisation
    rectified = description.rectified or activation == RELU
    return SparseAutoencoder(
        encoder, bias, shift, activation, k, threshold, normalisation, rectified, decoder, floats["b_dec"]
    )


def _activation(
    description: Description, tensors: Mapping[str, Tensor], count: int, path: Path
) -> tuple[str, float | Tensor | None]:
    """Return g and its threshold."""
    if description.activation == GATED:
        return JUMP_RELU, tensors["b_mag"] - tensors["r_mag"].exp() * tensors["b_gate"]
    if description.activation == JUMP_RELU:
        threshold = tensors["log_threshold"].exp() if "log_threshold" in tensors else tensors.get("threshold")
        if threshold is None:
            raise UsageError(KEY, path, f"has no tensor threshold; it has {', '.join(sorted(tensors))}")
        _check(threshold, (count,), "threshold", path)
        return JUMP_RELU, threshold
    if description.activation == BATCH_TOP_K and "activation.threshold" in tensors:
        _check(tensors["activation.threshold"], (), "activation.threshold", path)
        least = float(tensors["activation.threshold"])
        return (BATCH_TOP_K, least) if least > 0 else (RELU, None)  # saev treats an untrained threshold as a ReLU
    return description.activation, None


def _shape(encoder: Tensor, path: Path) -> tuple[int, int]:
    if encoder.ndim != 2:
        raise UsageError(KEY, path, f"W_enc has the shape {tuple(encoder.shape)}; (channels, features) is needed")
    return encoder.shape[0], encoder.shape[1]


def _check(tensor: Tensor, shape: tuple[int, ...], name: str, path: Path) -> None:
    if tuple(tensor.shape) != shape:
        raise UsageError(KEY, path, f"{name} has the shape {tuple(tensor.shape)}; {shape} is needed")
    if not tensor.isfinite().all():
        raise UsageError(KEY, path, f"{name} holds values that are not finite")
