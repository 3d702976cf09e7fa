"""The choice whether windows of hidden units are enlarged; without enlarging, pictures have the windows' size."""

from __future__ import annotations

from collections.abc import Sequence

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.mining.references import MinedReferences
from vital_exp.models.network import VisionNetwork
from vital_exp.models.refusals import takes_size
from vital_exp.references.base import References
from vital_exp.references.faceted import FacetedReferences
from vital_exp.targets.unit import Target

KEY = "references.enlarge"
AUTO = "auto"
# Share of the input's side below which windows are enlarged: padding would dominate activations of smaller pictures.
LEAST_SHARE = 0.25


def settle_windows(
    config: Configuration, network: VisionNetwork, references: References, targets: Sequence[Target], find: bool = True
) -> Configuration:
    """Return the configuration with ``auto`` resolved for mined references, and with the size of the pictures.

    ``references.candidates`` becomes the number of images that compete, and ``references.enlarge`` true or false.
    Pictures get the size of windows that are not enlarged.

    ``auto`` enlarges no windows if the network takes pictures of their size, as convolutional networks do, and if the
    user has not chosen the pictures' size. Units then see the windows in the size in which mining found them.

    Args:
        config: the composed configuration.
        network: the frozen network.
        references: of the targets.
        targets: units, or their facets.
        find: whether mining may run; False leaves ``auto`` unresolved where nothing is mined yet.

    Raises:
        UsageError: neither a truth value nor auto; or false for windows without a size of their own, of several sizes,
            or of a size that the network refuses.
    """
    source = references.source if isinstance(references, FacetedReferences) else references
    enlarge = config.references.enlarge
    if not isinstance(enlarge, bool) and enlarge != AUTO:
        raise UsageError(KEY, enlarge, "true, false or auto", [AUTO])
    if not isinstance(source, MinedReferences):
        return config
    config = config.with_keys(references__candidates=source.candidates_count)
    if enlarge is True:
        return config
    chosen = config.image.size is not None
    if enlarge == AUTO and (chosen or source.region != "window"):
        return config.with_keys(references__enlarge=True)
    if find or source.is_mined():
        side, problem = _side(network, source, targets)
        if problem and enlarge is False:
            raise UsageError(KEY, enlarge, problem)
        source.enlarge = bool(problem)
        config = config.with_keys(references__enlarge=source.enlarge)
        if not problem and not chosen:
            config = config.with_keys(image__size=max(1, round(side * config.image.scale)))
    return config


def _side(network: VisionNetwork, source: MinedReferences, targets: Sequence[Target]) -> tuple[int, str]:
    """Return the side of all windows in px, and the reason why they must be enlarged; '' if they need not be."""
    if any(target.position is not None for target in targets):
        return 0, "a neuron's position belongs to the map at the input's size"
    sides = {source.side(target) for target in targets}
    size, side = network.preprocessing.size, next(iter(sides))
    if side is None or None in sides:
        return 0, "only windows (references.region=window) of layers with a map have a size of their own"
    if len(sides) > 1:
        return side, f"the layers' windows have several sizes: {', '.join(map(str, sorted(map(int, sides))))} px"  # type: ignore[arg-type]
    if side >= max(size):
        return side, "the windows are whole images"
    if side < LEAST_SHARE * min(size):
        return side, f"windows of {side} px are less than a quarter of the input's side"
    if not takes_size(network, (side, side)):
        return side, f"the network does not take pictures of {side}x{side} px"
    return side, ""
