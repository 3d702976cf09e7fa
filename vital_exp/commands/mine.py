"""vital-mine: find the images and patches that drive units, find concepts, or compute the spectrum of a folder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from vital_exp.commands.hydra_app import run_app
from vital_exp.commands.imports import uncollected
from vital_exp.config import config_hash
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.values import one_of

if TYPE_CHECKING:
    from torch import Tensor

    from vital_exp.concepts.mine import ConceptMining
    from vital_exp.evaluation.clip import Clip
    from vital_exp.mining.images import ImageFolder
    from vital_exp.mining.index import Index
    from vital_exp.mining.mine import Mining
    from vital_exp.mining.units import ClassRelevance, Units
    from vital_exp.models.network import VisionNetwork
    from vital_exp.naming.find import Query
    from vital_exp.naming.names import Names
    from vital_exp.references.arrays import Loader
    from vital_exp.reporting.found import Found
    from vital_exp.targets.autoencoder import SparseAutoencoder

COMMAND = "mine"
# Overrides of a command without arguments: some units of the embedded network, in less than a minute. Beside each
# stands the argument with which the override would have no effect.
DEMO = {"channels=0-31": "concepts=", "k=20": None, "patch.search=strongest": "patches=false"}
LISTS = ("layers",)
CORRUPT_SHOWN = 5
SPECTRUM_BATCH = 16  # images whose loading is timed, to estimate the time of a spectrum


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without arguments it uses an embedded network and images drawn by code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not {"-m", "--multirun"} & set(given):
        given = [_quoted(argument) if argument.startswith("find=") else argument for argument in given]
    if not _any("(model|images|layers|spectrum|list)=", given):
        given = [*(one for one, idle in DEMO.items() if not (idle and _any(idle, given))), *given]
    if _any("list=", given) or _any("(?i:dry_run=true$)", given):
        given = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
        given = ["hydra.run.dir=.", "hydra/job_logging=stdout", *given]  # no folder, for nothing is made
    run_app("vital-mine", COMMAND, mine_job, given)


def _any(pattern: str, arguments: list[str]) -> bool:
    """Whether an argument begins with a match of the pattern, behind any plus signs."""
    return any(re.match(rf"\+*({pattern})", argument, re.IGNORECASE) for argument in arguments)


def _quoted(argument: str) -> str:
    """Return key=value with the value in quotes, because words and file names hold commas, colons and apostrophes."""
    key, _, value = argument.partition("=")
    if value in ("", "null") or value[0] in "'\"[":
        return argument
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + (match[2] and "\\'"), value)
    return f"{key}='{escaped}'"


def mine_job(config: Configuration) -> int:
    """Run one job; return the number of failed targets, always 0. Corrupt images are only listed."""
    if config.list is not None:
        return _list(config)
    out = Path(HydraConfig.get().runtime.output_dir)
    if config.spectrum:
        return _spectrum(config, out)
    return _concepts(config, out) if config.get("concepts") else _mine(config, out)


def _mine(config: Configuration, out: Path) -> int:
    from vital_exp.mining.sheets import write_sheets
    from vital_exp.reporting.mining import write_page

    mining = _mining(config)
    query = _query(config, mining.folder, mining.units.network)
    if config.dry_run:
        print(mining.plan())
        return 0
    mining.check()
    _open(mining.described(), out)
    index = mining.run(out)
    _record(config, out, mining.units.network, mining.batch_size)
    _tell_corrupt(index.corrupt, len(mining.folder.paths))
    print(f"index: {index.path} ({len(index.units())} units of {', '.join(mining.units.layers)})")
    names = _names(config, mining, index, out)
    found = _found(config, query, mining, index, out)
    if config.sheets:
        mined = mining.units if config.overlays else None
        units = list(write_sheets(index, mining.folder, out, config.progress, mined))
        notes = {unit: names.note(unit) for unit in units}
        print(f"page: {write_page(index, out, units, notes, found=found)} (contact sheets of {len(units)} units)")
    if config.pooling == "max" and config.sae is None:  # other indices are no references, or need too many keys
        layer, number = found.units[0] if found and found.units else index.units()[0]
        kind = ["target=direction", f"target.vectors={config.directions}"] if config.directions else ["target=channel"]
        place = [f"target.position={config.position}"] if config.position else []
        unit = [f"target.layer={layer}", f"target.index={number}", *place]
        print(_next([*kind, *unit, f"references.index={index.path}"]))
    return 0


def _open(described: dict[str, str], out: Path) -> None:
    """Print a description of the mining before its first pass."""
    from vital_exp.mining.plan import told

    print(told({**described, "folder": str(out)}), flush=True)


def _next(asked: list[str]) -> str:
    """Return the line with the command that makes pictures of the mined units."""
    model = [one for one in HydraConfig.get().overrides.task if re.match(r"\+*model[.=@]", one)]
    return f"next: vital-visualize {shlex.join([*model, *asked])}"


def _names(config: Configuration, mining: Mining, index: Index, out: Path) -> Names:
    """Name the units of an index by words, labels and formulas, where asked for, and write names.csv."""
    from vital_exp.naming.formulas import best_formulas
    from vital_exp.naming.labels import chosen_labels, folder_labels, label_scores, unit_values
    from vital_exp.naming.names import Names
    from vital_exp.naming.splice import sparse_words
    from vital_exp.naming.words import clip_and_words, unit_words

    keys, units, folder = config.naming, index.units(), mining.folder
    words, labels, formulas = {}, {}, {}
    if keys.labels:
        owners = folder_labels(folder, mining.units.network.class_names)
        asked = chosen_labels(keys.labels if isinstance(keys.labels, bool) else list(map(str, keys.labels)), owners)
        values, numbers = unit_values(mining.units, folder, config.batch_size, config.workers)
        read = [owners[number] for number in numbers]
        labels = {layer: label_scores(one, read, asked) for layer, one in values.items()}
        if (length := int(keys.formula_length)) > 1:
            several = [[name] for name in read]
            formulas = {layer: best_formulas(one, several, asked, length) for layer, one in values.items()}
    if keys.words:
        clip = clip_and_words(config, mining.units.network, "naming.words", True)
        sparse = keys.method == "splice"
        words = sparse_words(index, folder, *clip, keys.penalty) if sparse else unit_words(index, folder, *clip)
    names = Names(units, words, labels, formulas)
    if words or labels:
        print(f"names: {names.write(out)}")
    return names


def _query(config: Configuration, folder: ImageFolder, network: VisionNetwork) -> tuple[Query, Clip | None] | None:
    """Return the query for units, and CLIP if it compares them; mistakes are reported before a long mining."""
    if config.find is None:
        return None
    from vital_exp.naming.find import EMBEDDING, KEY, read_query
    from vital_exp.naming.words import clip_and_words

    query = read_query(config.find, config.find_by, folder.files)
    return query, clip_and_words(config, network, KEY, query.text)[0] if query.by == EMBEDDING else None


def _found(
    config: Configuration, query: tuple[Query, Clip | None] | None, mining: Mining, index: Index, out: Path
) -> Found | None:
    """Print the units that answer to a query, and write find.csv and find.jpg; None without a query."""
    if query is None:
        return None
    from vital_exp.naming.find import find_units, printed, write_table
    from vital_exp.reporting.found import write_found

    asked, clip = query
    matches = find_units(asked, index, mining.units, mining.folder, clip, config.progress)
    print(printed(asked, matches, index, config.find_count))
    found = write_found(asked, matches[: config.find_count], index, mining.folder, out)
    print(f"found: {write_table(matches, out)}, {out / found.name}")
    return found


def _concepts(config: Configuration, out: Path) -> int:
    from vital_exp.reporting.concepts import write_report

    mining = _concept_mining(config)
    query = _query(config, mining.folder, mining.network)
    if config.dry_run:
        print(mining.plan())
        return 0
    mining.settings.check()
    mining.patch.check(mining.network.preprocessing.size)
    _open(mining.described(), out)
    concepts, index = mining.run(out)
    _record(config, out, mining.network, mining.batch_size)
    _tell_corrupt(index.corrupt, len(mining.folder.paths))
    print(f"concepts: {out / 'concepts.safetensors'} ({len(concepts)} of {concepts.layer}); index: {index.path}")
    every = mining.mining(concepts)
    names, found = _names(config, every, index, out), _found(config, query, every, index, out)
    if config.sheets:
        shown = (names.note, config.progress, every.units if config.overlays else None, found)
        print(f"page: {write_report(concepts, index, mining.folder, out, *shown)}")
    print(_next(["target=concept", f"target.concepts={out}"]))
    return 0


def _concept_mining(config: Configuration) -> ConceptMining:
    """Return the search for concepts that the configuration asks for."""
    with uncollected():
        from vital_exp.concepts.mine import ConceptMining, ConceptSettings, check_classifier, class_folder
        from vital_exp.mining.images import ImageFolder
        from vital_exp.mining.patches import PatchSettings
        from vital_exp.setup.parts import device_of

    network = _network(config).to(device_of(config))
    layers = _layers(config, network)
    if len(layers) != 1:
        raise UsageError("layers", layers, "concepts are found in one layer: name one")
    keys = dict(config.concepts)
    given, root = keys.pop("class"), _folder(config)
    if given is not None:
        check_classifier(network, given)
        given = network.classes.find(str(given), "concepts.class")
        root = class_folder(root, network, given, loader=_loader(config))
    folder, patch = ImageFolder(root, network.preprocessing, loader=_loader(config)), PatchSettings(**config.patch)
    options = {key: config[key] for key in ("k", "batch_size", "workers", "progress", "save_every")}
    settings = ConceptSettings(of_class=given, **keys)
    return ConceptMining(network, layers[0], folder, settings, patch=patch, **options)


def _mining(config: Configuration) -> Mining:
    """Return the mining that the configuration asks for."""
    with uncollected():
        from vital_exp.mining.images import ImageFolder
        from vital_exp.mining.mine import Mining
        from vital_exp.mining.patches import PatchSettings
        from vital_exp.setup.parts import device_of

    device = device_of(config)
    network = _network(config)
    folder = ImageFolder(_folder(config), network.preprocessing, loader=_loader(config))
    units = _units(config, network.to(device))
    patch = PatchSettings(**config.patch) if config.patches else None
    return Mining(
        *(units, folder, config.k, patch, config.batch_size, config.workers, config.progress, config.save_every)
    )


def _network(config: Configuration) -> VisionNetwork:
    from vital_exp.models.loading import build_network
    from vital_exp.models.named import model_config

    return build_network(model_config(config), config.cache)


def _loader(config: Configuration) -> Loader | None:
    """Return the user's function that loads images; None where there is none."""
    from vital_exp.references.arrays import Loader

    return None if config.loader is None else Loader.named(str(config.loader), "loader")


def _folder(config: Configuration) -> Path:
    """Return the folder of images; for an embedded network the default is a folder of drawn images."""
    from vital_exp.mining.drawn import drawn_folder
    from vital_exp.setup.image_root import image_root

    if config.images:
        return image_root(config.images, config.cache, "images")
    if config.model.source != "embedded":
        raise UsageError("images", config.images, "a folder of images is needed, with any sub-folders")
    return drawn_folder(config.cache)


def _units(config: Configuration, network: VisionNetwork) -> Units:
    from vital_exp.mining.units import select_units

    layers = _layers(config, network)
    given = _directions(config, layers) or _features(config, layers, network)
    relevance = _relevance(config, network)
    return select_units(network, layers, config.channels, config.pooling, given, config.position, relevance)


def _layers(config: Configuration, network: VisionNetwork) -> list[str]:
    """Return the layers that the configuration names; by default the last aligned layer."""
    from vital_exp.models.layers import alignment
    from vital_exp.models.network import Recipe

    if config.layers is None:
        return list(alignment(network, Recipe()).layers)[-1:]
    return list(map(str, [config.layers] if isinstance(config.layers, (str, int)) else config.layers))


def _directions(config: Configuration, layers: list[str]) -> dict[str, Tensor]:
    from vital_exp.targets.directions import load_directions

    if config.directions is None:
        return {}
    if len(layers) != 1:
        raise UsageError("directions", config.directions, f"directions belong to one layer, and layers={layers}")
    try:
        return {layers[0]: load_directions(config.directions)}
    except UsageError as error:
        raise UsageError("directions", error.value, error.problem, error.options) from None


def _features(config: Configuration, layers: list[str], network: VisionNetwork) -> dict[str, SparseAutoencoder]:
    """Return the autoencoder whose features are mined, by its layer."""
    from vital_exp.models.layers import unit_shape
    from vital_exp.targets.autoencoder_files import load_autoencoder

    if config.sae is None:
        return {}
    if len(layers) != 1:
        raise UsageError("sae", config.sae, f"an autoencoder reads one layer, and layers={layers}")
    keys = {**config.autoencoder, "checkpoint": config.sae, "layer": layers[0]}
    try:
        return {layers[0]: load_autoencoder(keys, unit_shape(network, layers[0], "layers")[0])}
    except UsageError as error:
        own = "sae" if error.key == "target.checkpoint" else error.key.replace("target.", "autoencoder.")
        raise UsageError(own, error.value, error.problem, error.options) from None


def _relevance(config: Configuration, network: VisionNetwork) -> ClassRelevance | None:
    """Return the class whose relevance ranks the images; None for another ranking."""
    from vital_exp.mining.units import RELEVANCE, ClassRelevance

    if config.pooling != RELEVANCE or config["class"] is None:
        return None
    return ClassRelevance(network.classes.find(str(config["class"]), "class"), config.relevance_method)


def _record(config: Configuration, out: Path, network: VisionNetwork, batch_size: int) -> None:
    """Write the configuration and provenance.json, the origin of the index."""
    import json

    from vital_exp.recorded_config import record_config
    from vital_exp.runs.provenance import provenance
    from vital_exp.whole_files import whole_file

    record_config(config, out)
    with whole_file(out / "provenance.json") as file:
        json.dump(provenance(config_hash(config), network, batch_size), file, indent=2)


def _tell_corrupt(corrupt: dict[str, str], count: int) -> None:
    from vital_exp.references.decoding import printable

    if corrupt:
        shown = [f"{printable(path)} ({reason})" for path, reason in list(corrupt.items())[:CORRUPT_SHOWN]]
        more = f" and {len(corrupt) - CORRUPT_SHOWN} more" if len(corrupt) > CORRUPT_SHOWN else ""
        print(f"{len(corrupt)} of {count} images could not be read: {', '.join(shown)}{more}")


def _spectrum(config: Configuration, out: Path) -> int:
    import torch

    from vital_exp.mining.plan import duration, images_line, measured, told
    from vital_exp.mining.spectrum import FolderSpectrum

    named = isinstance(config.spectrum, str)
    root, key = (config.spectrum, "spectrum") if named else (_folder(config), "images")
    spectrum = FolderSpectrum.of(root, config.spectrum_size, key)
    if config.dry_run:
        cost = measured(spectrum.folder, lambda _: None, SPECTRUM_BATCH, config.workers, torch.device("cpu"))
        count = len(spectrum.folder.paths)
        print(told({"images": images_line(spectrum.folder), "spectrum": f"about {duration(count * cost.loading)}"}))
        return 0
    path = spectrum.write(out, config.workers, config.progress)
    _tell_corrupt(spectrum.corrupt, len(spectrum.folder.paths))
    print(f"spectrum: {path}\nnext: vital-visualize method=maco image.magnitude={path}")
    return 0


def _list(config: Configuration) -> int:
    one_of("list", config.list, LISTS)
    from vital_exp.models.layers import describe_layers

    print(describe_layers(_network(config)))
    return 0


if __name__ == "__main__":
    main()
