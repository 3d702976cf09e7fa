"""Units that answer to a query: to words or an image, by CLIP's embeddings, or to an image by activation.

Formulas: docs/methods/mining.md.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.clip import Clip
from vital_exp.image_folders import names_file
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.units import RELEVANCE, Units
from vital_exp.naming.embeddings import embedded, region, unit_embeddings
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.files import PictureFiles
from vital_exp.terminal_tables import Column, table_text, wrapped
from vital_exp.values import one_of
from vital_exp.whole_files import whole_file

KEY = "find"
TABLE = "find.csv"
ACTIVATION, EMBEDDING = "activation", "embedding"
NAME, UNIT = 22, 34  # most characters of a file's and of a unit's name
LEFT_OUT = "…"
SHOWN = 10  # images of a unit in the table

Unit = tuple[str, int]


@dataclass(frozen=True)
class Query:
    """A query for units.

    Attributes:
        text: words, or the path of an image.
        by: ``"activation"`` or ``"embedding"``.
        picture: the image at the network's input size, (C, H, W) in [0, 1]; None for words.
    """

    text: str
    by: str
    picture: Tensor | None

    def measure(self, index: Index) -> str:
        """Return in words the meaning of the score."""
        if self.by == EMBEDDING:
            return "cosine of CLIP's embeddings"
        value = "relevance" if index.meta["pooling"] == RELEVANCE else "activation"
        return f"{value} as a share of the unit's largest"


@dataclass(frozen=True)
class FoundUnit:
    """A unit with its score for a query.

    Attributes:
        unit: (layer, channel).
        score: larger is better.
        rows: the patches (or images) that drive the unit most.
    """

    unit: Unit
    score: float
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """The unit's name, in the form of a target's name."""
        return f"{self.unit[0]}:{self.unit[1]}"


def read_query(text: str, by: str | None, files: PictureFiles) -> Query:
    """Return the query: an image from a file, or words.

    Args:
        text: a file's path, or words.
        by: ``"activation"``, ``"embedding"``, or None: activation for an image, embedding for words.
        files: reads images as the network sees them.

    Raises:
        UsageError: the text is empty, the file is missing or no image, or words are compared by activation.
    """
    if not text.strip():
        raise UsageError(KEY, text, "words, or an image file")
    if by is not None:
        one_of("find_by", by, (ACTIVATION, EMBEDDING))
    if not names_file(text):
        if by == ACTIVATION:
            raise UsageError("find_by", by, "words drive no unit: choose embedding, or give an image file as find")
        return Query(text, EMBEDDING, None)
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError(KEY, printable(path), "no such file")
    try:
        return Query(text, by or ACTIVATION, files.load(path))
    except CorruptImageError as error:
        raise UsageError(KEY, printable(path), f"is not an image that can be read ({error.reason})") from None


def find_units(
    query: Query, index: Index, units: Units, folder: ImageFolder, clip: Clip | None = None, progress: bool = False
) -> list[FoundUnit]:
    """Return the units of an index, the unit with the highest score first.

    By activation the score is the unit's value for the image, divided by its largest value for an image of the index.
    Units that no image of the index drives above 0 have no score and are left out. Bounded units (behind a ReLU6, for
    example) often have equal scores: the activation before the bound breaks the tie, or else the mean over positions.
    By embedding the score is the cosine similarity of the query's embedding and the mean embedding of the patches (or
    images) that drive the unit most.

    Args:
        query: the query.
        index: a finished index.
        units: the mined units, with the network.
        folder: the images of the index.
        clip: embeds images and words; needed for a query by embedding.
        progress: whether a progress bar is shown.
    """
    if query.by == ACTIVATION:
        scores = _activations(query, index, units)
    else:
        assert clip is not None, "a query by embedding needs CLIP"
        means = unit_embeddings(index, folder, clip, progress)
        cosines = (means @ _embedding(query, folder, clip)).tolist()
        scores = {unit: (cosine, 0.0) for unit, cosine in zip(index.units(), cosines, strict=True)}
    read = index.patches if region(index) == "patch" else index.top
    ranked = sorted(scores, key=lambda unit: scores[unit], reverse=True)
    return [FoundUnit(unit, scores[unit][0], read(*unit, SHOWN)) for unit in ranked]


def _embedding(query: Query, folder: ImageFolder, clip: Clip) -> Tensor:
    """Return the embedding (D,) of the image or the words, of length 1; words are embedded as class names are."""
    if query.picture is None:
        return clip.names([query.text])[0]
    return embedded(query.picture[None], folder, clip)[0]


def _activations(query: Query, index: Index, units: Units) -> dict[Unit, tuple[float, float]]:
    """Return the units' values for an image and the tie-breakers, as shares of each unit's largest value."""
    assert query.picture is not None, "words drive no unit"
    own: dict[Unit, tuple[float, float]] = {}
    for layer, (values, reach, _) in units.ranked(query.picture[None].to(units.network.device)).items():
        pairs = zip(values[0].tolist(), reach[0].tolist(), strict=True)
        own |= {(layer, number): pair for number, pair in zip(units.channels[layer], pairs, strict=True)}
    largest = {unit: index.largest_activation(*unit) for unit in index.units()}
    return {unit: (own[unit][0] / most, own[unit][1] / most) for unit, most in largest.items() if most > 0}


def write_table(matches: Sequence[FoundUnit], out: Path) -> Path:
    """Write ``out/find.csv``, one row per unit, the best first; return the path of the file."""
    path = out / TABLE
    with whole_file(path) as file:
        table = csv.writer(file)
        table.writerow(["rank", "layer", "channel", "score", "images"])
        for rank, match in enumerate(matches, start=1):
            images = " | ".join(printable(row.image) for row in match.rows)
            table.writerow([rank, *match.unit, f"{match.score:.6g}", images])
    return path


def printed(query: Query, matches: Sequence[FoundUnit], index: Index, most: int) -> str:
    """Return the first ``most`` units as a text table 80 characters wide, under a line that names the query.

    A line below the table says how many units of the index have no score.
    """
    columns = [
        Column("", right=True),
        Column("unit"),
        Column("score", right=True),
        Column("driven most by", flexible=True),
    ]
    rows = [
        [
            str(rank),
            _short(match.name, UNIT),
            f"{match.score:.2f}",
            " ".join(_file_name(row.image) for row in match.rows),
        ]
        for rank, match in enumerate(matches[:most], start=1)
    ]
    lines = [wrapped(f"units for {printable(query.text)}: {query.measure(index)}"), table_text(columns, rows)]
    mined = len(index.units())
    if left_out := mined - len(matches):
        lines.append(f"{left_out} of {mined} units are left out: no image of the folder drives them above 0")
    return "\n".join(lines)


def _file_name(path: str) -> str:
    """Return a file's name without its suffix; the middle of a long name is left out."""
    return _short(printable(path.rpartition(".")[0] or path), NAME)


def _short(text: str, width: int) -> str:
    """Return a text; its middle is left out if it is longer than ``width``."""
    kept = width - len(LEFT_OUT)
    return text if len(text) <= width else text[: kept - kept // 2] + LEFT_OUT + text[-(kept // 2) :]
