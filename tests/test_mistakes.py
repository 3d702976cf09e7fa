"""A user's mistake ends in one line that names the key, the value and what is allowed, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import ON_CPU, SHORT, command, image_folder
from vital_exp import load_model
from vital_exp.mining.mine import mine
from vital_exp.mining.patches import PatchSettings
from vital_exp.objectives.terms import Objective

MISTAKE, SOME_FAILED = 2, 3
FOLDER = ("references=folder",)

# Arguments after the shortest run's, and words of the line.
MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown model": (("model=resnet51",), ("model=resnet51", "did you mean resnet50")),
    "unknown model with +": (("+model=resnet51",), ("model=resnet51", "did you mean resnet50")),
    "unknown timm network": (("model=timm", "model.name=resnet5x"), ("model.name=resnet5x", "did you mean resnet50")),
    "no name for timm": (("model=timm",), ("model.name", "needed")),
    "unknown tag": (
        ("model=timm", "model.name=resnet50.tv", "model.pretrained=false"),
        ("model.name=resnet50.tv", "tag"),
    ),
    "unknown torchvision network": (("model=torchvision", "model.name=resnet5x"), ("model.name=resnet5x", "resnet50")),
    "unknown source": (("model.source=tim",), ("model.source=tim", "did you mean timm")),
    "no factory": (("model=python",), ("model.factory", "package.module:function")),
    "factory without function": (("model=python", "model.factory=os"), ("model.factory=os", "package.module:function")),
    "unknown module": (("model=python", "model.factory=no_module:f"), ("model.factory=no_module", "no_module")),
    "unknown function": (("model=python", "model.factory=os:getcwdd"), ("os:getcwdd", "did you mean os:getcwd")),
    "unknown file": (("model=python", "model.factory=no.py:f"), ("model.factory=no.py", "no such file")),
    "means and deviations of two lengths": (
        ("model.mean=[0.5,0.5,0.5]", "model.std=[1]"),
        ("model.std=[1.0]", "model.mean", "3, not 1"),
    ),
    "judge of no kind": (("evaluation.judges=[3]",), ("evaluation.judges=3", "keys of the group model")),
    "unknown key of a judge": (("evaluation.judges=[{sorce:timm}]",), ("judges.sorce=timm", "did you mean source")),
    "factory of something else": (("model=python", "model.factory=os:getcwd"), ("os:getcwd", "str", "torch.nn.Module")),
    "unknown argument of a factory": (
        ("model=python", "model.factory=tests.tiny:tiny_net", "model.arguments={clases:3}"),
        ("model.arguments", "clases"),
    ),
    "argument of an embedded network": (("model.arguments.a=1",), ("model.arguments", "none")),
    "unknown layer": (("model.layers=[layer44]",), ("model.layers=layer44", "did you mean layer4", "list=layers")),
    "no layers": (("model.layers=[]",), ("model.layers=[]", "at least one")),
    "a layer twice": (("model.layers=[layer4,layer4]",), ("model.layers", "different")),
    "too few layer weights": (("model.layer_weights=[1]",), ("model.layer_weights=[1.0]", "there are 5")),
    "layer weights are words": (("model.layer_weights=[a,b]",), ("model.layer_weights=a", "number")),
    "prior is a word": (("model.total_variation=x",), ("model.total_variation=x", "number")),
    "two means": (("model.mean=[1,2]",), ("model.mean=[1.0, 2.0]", "3 values")),
    "mean is a word": (("model.mean=abc",), ("model.mean=abc", "numbers")),
    "std is zero": (("model.std=[0,1,1]",), ("model.std=[0.0, 1.0, 1.0]", "above 0")),
    "size is a word": (("model.size=abc",), ("model.size=abc", "[height, width]")),
    "three sizes": (("model.size=[64,64,3]",), ("model.size=[64, 64, 3]", "[height, width]")),
    "size the network refuses": (("model=embedded_vit", "model.size=96"), ("model.size=96x96", "refuses")),
    "picture the network refuses": (("model=embedded_vit", "image.size=96"), ("image.size=96x96", "refuses")),
    "interpolation": (("model.interpolation=bilineer",), ("model.interpolation=bilineer", "did you mean bilinear")),
    "two class names": (("model.class_names=[a,b]",), ("model.class_names", "10 classes")),
    "missing checkpoint": (("model.checkpoint=no.pth",), ("model.checkpoint=no.pth", "no such file")),
    "unknown class": (("target.index=starr",), ("target.index=starr", "did you mean star")),
    "class out of range": (("target.index=10",), ("target.index=10", "0 to 9")),
    "no class": (("target.index=[]",), ("target.index=[]",)),
    "unknown method": (("method=vitall",), ("method=vitall", "did you mean vital")),
    "unknown method with +": (("+method=vitall",), ("method=vitall", "did you mean vital")),
    "unknown logger": (("logger=wandbb",), ("logger=wandbb", "did you mean wandb")),
    "unknown experiment": (("+experiment=dmo",), ("experiment=dmo", "did you mean demo")),
    "no option": (("experiment=null",), ("experiment=null", "one of", "embedded_table")),
    "unknown term": (("objective=[alignmnt]",), ("objective=alignmnt", "did you mean alignment")),
    "no terms": (("objective=[]",), ("objective", "at least one term")),
    "a key as a flag": (("--steps=3",), ("--steps=3", "without dashes")),
    "unknown flag": (("-x",), ("-x", "no such flag")),
    "unknown key": (("stepz=3",), ("stepz=3", "did you mean steps")),
    "unknown key with +": (("+stepz=3",), ("+stepz=3", "did you mean steps")),
    "unknown key with ++": (("++stepz=3",), ("stepz=3", "did you mean steps")),
    "unknown key taken away": (("~stepz",), ("~stepz", "taken away")),
    "needed key taken away": (("~steps",), ("~steps", "taken away")),
    "known key with +": (("+steps=3",), ("+steps=3", "steps=3", "already")),
    "unknown option key": (("optimizer.lrr=1",), ("optimizer.lrr=1", "did you mean optimizer.lr")),
    "unknown option key with +": (("+optimizer.lrr=1",), ("+optimizer.lrr=1", "did you mean optimizer.lr")),
    "unknown group": (("modell=resnet50",), ("modell=resnet50", "did you mean model")),
    "unknown mapping": (("+foo.bar=1",), ("+foo.bar=1", "no such key")),
    "key of another option": (("image.decay=2",), ("image.decay=2", "image=fourier")),
    "root of embedded references": (
        ("references.root=photos",),
        ("references.root=photos", "references=folder", "(references=folder references.root=photos)"),
    ),
    "argument of a term": (("+objective.l2.wait=1",), ("objective.l2.wait=1", "did you mean objective.l2.weight")),
    "a transform that is none": (("+transforms.foo=1",), ("transforms.foo=1", "_target_")),
    "a key of the engine": (("+trainer.max_steps=9",), ("+trainer.max_steps=9", "engine")),
    "unknown class of an optimiser": (("optimizer._target_=torch.optim.Adem",), ("torch.optim.Adem", "no such class")),
    "value an optimiser refuses": (("optimizer.betas=[2,3]",), ("torch.optim.Adam", "beta")),
    "no equals sign": (("steps",), ("steps", "key=value")),
    "no key": (("=3",), ("=3", "key=value")),
    "bracket": (("steps=[1",), ("steps=[1", "key=value")),
    "several values without -m": (("seed=0,1",), ("seed=0,1", "-m")),
    "no references": (FOLDER, ("references.root", "folder of natural images")),
    "missing references": ((*FOLDER, "references.root=nowhere"), ("references.root=nowhere", "does not exist")),
    "empty references": ((*FOLDER, "references.root={empty}"), ("references.root=", "no images")),
    "references are a file": ((*FOLDER, "references.root={file}"), ("references.root=", "no folder")),
    "class without references": (
        (*FOLDER, "references.root={photos}", "target.index=5"),
        ("references.root=", 'class 5 "mushroom"', "star"),
    ),
    "unknown folders": (
        (*FOLDER, "references.root={strange}"),
        ("references.root=", '"abc"', "name, WordNet id or index"),
    ),
    "corrupt references": (
        (*FOLDER, "references.root={corrupt}", "references.count=8"),
        ("references.root=", "corrupt", "broken"),
    ),
    "mined references of a class": (("references=mined",), ("references=mined", "hidden units only")),
    "unknown references": (("references.source=foldr",), ("references.source=foldr", "folder")),
    "references.count=0": (("references.count=0",), ("references.count=0", "at least 1")),
    "steps=0": (("steps=0",), ("steps=0", "at least 1")),
    "a range": (("seed=0..2",), ("seed=0..2", "at least 0", "-m 'seed=range(0,3)'")),
    "a value without quotes": (
        ("target.index=golf", "ball"),
        ("argument=ball", 'is quoted: target.index="golf ball"'),
    ),
    "steps=1.5": (("steps=1.5",), ("steps=1.5", "whole number")),
    "steps=": (("steps=",), ("steps=", "whole number")),
    "mask=pubished": (("mask=pubished",), ("mask=pubished", "followed, published", "published")),
    "mask_percentile=0": (("mask_percentile=0",), ("mask_percentile=0", "above 0, at most 100")),
    "batch_size=0": (("batch_size=0",), ("batch_size=0", "at least 1", "auto")),
    "batch_size=x": (("batch_size=x",), ("batch_size=x", "at least 1", "auto")),
    "seed=-1": (("seed=-1",), ("seed=-1", "at least 0")),
    "image.size=0": (("image.size=0",), ("image.size=0", "at least 1 px")),
    "missing start": (("image.init=no.png",), ("image.init=no.png", "noise")),
    "optimizer.lr=0": (("optimizer.lr=0",), ("optimizer.lr=0", "above 0")),
    "precision": (("trainer.precision=16-mixed",), ("trainer.precision=16-mixed", "bf16-mixed")),
    "accelerator": (("trainer.accelerator=cudaa",), ("trainer.accelerator=cudaa", "did you mean cuda")),
    "no cuda": (("trainer.accelerator=cuda",), ("trainer.accelerator=cuda", "cpu")),
    "no devices": (("trainer.devices=0",), ("trainer.devices=0", "a number of devices")),
    "devices are a word": (("trainer.devices=all",), ("trainer.devices=all", "auto")),
    "two named GPUs": (("trainer.devices=[0,1]",), ("trainer.devices=[0, 1]", "0 GPUs", "number of processes")),
    "two machines": (("trainer.num_nodes=2",), ("trainer.num_nodes=2", "torchrun --nnodes=2", "srun")),
    "no machine": (("trainer.num_nodes=0",), ("trainer.num_nodes=0", "at least 1")),
    "seed of the references": (("references.seed=x",), ("references.seed=x", "whole number")),
    "log steps": (("trainer.log_every_n_steps=0",), ("trainer.log_every_n_steps=0", "at least 1")),
    "unknown judge": (
        ("evaluation=basic", "evaluation.judges=[embedded_juge]"),
        ("evaluation.judges=embedded_juge", "did you mean embedded_judge"),
    ),
    "judge of other classes": (
        ("evaluation=basic", "evaluation.judges=[{name:resnet10t,pretrained:false}]"),
        ("evaluation.judges=resnet10t", "1000 classes", "10"),
    ),
    "key of a judge": (
        ("evaluation=basic", "evaluation.judges=[{nam:x}]"),
        ("evaluation.judges.nam=x", "did you mean name"),
    ),
    "judges are no list": (("evaluation.judges=resnet50",), ("evaluation.judges=resnet50", "list")),
    "resume is a word": (("resume=maybe",), ("resume=maybe", "true or false")),
    "run folder is a file": (("hydra.run.dir={file}",), ("hydra.run.dir=", "cannot be made")),
    "run folder below a file": (("hydra.run.dir={file}/run",), ("hydra.run.dir=", "cannot be made")),
    "cache below a file": (("cache_dir={file}", "references.cache=true"), ("cache_dir=", "Not a directory")),
    "no cache folder": (("cache_dir=null",), ("cache_dir=", "folder")),
    "unknown list": (("list=nonsense",), ("list=nonsense", "one of layers")),
    "no login": (("logger=wandb",), ("logger=wandb", "wandb login", "logger.offline=true")),
}

# Of hidden units: arguments after those of a channel of layer3, and words of the line.
HIDDEN = ("target=channel", "target.layer=layer3", "references.region=image")
OWN = ("references.index={mined}",)
DIRECTIONS = ("target=direction", "references.index={mined_directions}")
HIDDEN_MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown layer": (("target.layer=layer33",), ("target.layer=layer33", "did you mean layer3", "list=layers")),
    "no layer": (("target.layer=null",), ("target.layer=None", "list=layers")),
    "channel out of range": (("target.index=96",), ("target.index=96", "96 channels of layer3, 0 to 95")),
    "channel is a word": (("target.index=heart",), ("target.index=heart", "0 to 95")),
    "position outside the map": (
        ("target=neuron", "target.position=[8,0]"),
        ("target.position=[8, 0]", "8x8 map of layer3"),
    ),
    "no position": (("target=neuron",), ("target.position=None", "[row, column]")),
    "half a position": (("target=neuron", "target.position=[1]"), ("target.position=[1]", "[row, column]")),
    "an aligned layer after the target": (("model.layers=[layer1,layer4]",), ("model.layers=layer4", "layer3")),
    "the target's layer aligned": (("model.layers=[layer3]",), ("model.layers=layer3", "not below", "layer3")),
    "unknown aligned layer": (("model.layers=[layer11]",), ("model.layers=layer11", "did you mean layer1")),
    "missing images": (("references.root=nowhere",), ("references.root=nowhere", "does not exist")),
    "images are a number": (("references.root=3",), ("references.root=3", "a folder of natural images")),
    "empty images": (("references.root={empty}",), ("references.root=", "holds no images")),
    "region": (("references.region=pach",), ("references.region=pach", "did you mean patch")),
    "no candidates": (("references.candidates=0",), ("references.candidates=0", "at least 1")),
    "missing index": (("references.index=nowhere",), ("references.index=nowhere", "no index.sqlite there")),
    "an index that is none": (("references.index={file}",), ("references.index=", "is not an index of vital-mine")),
    "an index that is a number": (("references.index=3",), ("references.index=3", "no index.sqlite there")),
    "index of another model": ((*OWN, "model.pretrained=false"), ("references.index=", "another network", "weights")),
    "index of another input size": ((*OWN, "model.size=48"), ("references.index=", "another network", "preprocessing")),
    "index of another folder": (
        (*OWN, "references.root={strange}"),
        ("references.index=", "another folder", "/photos; now", "/strange"),
    ),
    "images changed since": (
        ("references.index={mined_changed}",),
        ("references.index=", "other images", "held 4 then and holds 5 now"),
    ),
    "images gone since": (("references.index={mined_gone}",), ("references.index=", "/gone, which is no longer there")),
    "layer that was not mined": (
        (*OWN, "target.layer=layer4"),
        ("target.layer=layer4", "was not mined", "did you mean layer3"),
    ),
    "channel that was not mined": ((*OWN, "target.index=7"), ("target.index=7", "layer3", "channels 0-1 were mined")),
    "index without patches": ((*OWN, "references.region=patch"), ("references.index=", "without patches", "image")),
    "index by the mean": (("references.index={mined_mean}",), ("references.index=", "mean", "pooling=max")),
    "other patches than the index": (
        ("references.index={mined_patches}", "references.region=patch", "references.patch.size=16"),
        ("references.patch.size=16", "mined with 32"),
    ),
    "index of channels for directions": (
        ("target=direction", *OWN, "target.vectors={directions.safetensors}"),
        ("references.index=", "not one of the channels that were mined of layer3"),
    ),
    "index of directions for a channel": (
        ("references.index={mined_directions}",),
        ("references.index=", "not one of the directions that were mined of layer3"),
    ),
    "index of other directions": (
        (*DIRECTIONS, "target.vectors={others.safetensors}"),
        ("references.index=", "other directions of layer3"),
    ),
    "index of a file for one of its directions": (
        (*DIRECTIONS, "target.vectors={directions.safetensors}#1"),
        ("references.index=", "other directions of layer3"),
    ),
    "direction out of range": (
        (*DIRECTIONS, "target.vectors={directions.safetensors}", "target.index=2"),
        ("target.index=2", "2 directions, 0 to 1"),
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    (root / "file").write_text("")
    image_folder(root / "photos", ["star", "heart"])
    image_folder(root / "strange", ["abc", "def"])
    image_folder(root / "corrupt", ["star"], count=4, corrupt=4)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def mined(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Indices of the embedded network: whose images changed, without patches, of directions ..."""
    root, network = tmp_path_factory.mktemp("mined"), load_model("embedded_resnet")
    vectors = {name: torch.eye(96)[first : first + 2] for first, name in enumerate(("directions", "others"))}
    for name, rows in vectors.items():
        save_file({"v": rows}, root / f"{name}.safetensors")
    given: dict[str, dict[str, Any]] = {
        **{"": {}, "_mean": {"pooling": "mean"}, "_patches": {"patch": PatchSettings(32)}},
        **{"_directions": {"directions": {"layer3": vectors["directions"]}}, "_changed": {}, "_gone": {}},
    }
    for name, options in given.items():
        photos = places["photos"]
        if name in ("_changed", "_gone"):
            photos = Path(shutil.copytree(photos, root / name.removeprefix("_")))
        mine(
            network,
            "layer3",
            photos,
            **{"k": 2, "channels": "0-1", "patch": None, **options, "out": root / f"mined{name}"},
        )
    shutil.copy(places["photos"] / "star" / "0.png", root / "changed" / "new.png")
    shutil.rmtree(root / "gone")
    return places | {path.name: path for path in root.iterdir()}


@pytest.fixture(autouse=True)
def workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of somebody without a login."""
    monkeypatch.setenv("HOME", str(workplace))
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    return workplace


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, "\n".join(lines)
    return lines[0]


def _placed(argument: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        argument = argument.replace(f"{{{name}}}", str(path))
    return argument


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[mistake]
    check_line([_placed(argument, places) for argument in arguments], words, capsys)


@pytest.mark.parametrize("mistake", HIDDEN_MISTAKES)
def test_a_mistake_with_hidden_units_is_one_line(
    mistake: str, mined: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = HIDDEN_MISTAKES[mistake]
    check_line([_placed(argument, mined) for argument in (*HIDDEN, *arguments)], words, capsys)
    assert not Path("run/images").exists()


def check_line(arguments: Sequence[str], words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Make sure that a run ends in one line with these words."""
    code = command(*SHORT, *ON_CPU, "references.cache=false", "progress=true", "hydra.run.dir=run", *arguments)
    line = line_of(capsys)
    assert code == MISTAKE, line
    assert line.startswith("vital-visualize: ")
    assert all(word in line for word in words), line


# What needs no torch: ranges, kinds, paths, names of keys, options and classes.
EARLY = """
import sys
from vital_exp import errors
from vital_exp.commands import atlas, evaluate, mine, report, visualize

def run(main, *arguments):
    try:
        main(list(arguments))
    except SystemExit as end:
        print(end.code, "torch" in sys.modules)

run(visualize.main, "steps=0", "evaluation.kid_subset_size=3")
run(visualize.main, "method=vitall")
run(visualize.main, "references=folder", "references.root=nowhere")
run(visualize.main, "optimizer.lr=-1")
run(visualize.main, "image=fourier", "image.grow_from=2")
run(visualize.main, "target.index=10")
run(visualize.main, "target=neuron", "target.layer=layer3", "target.position=[1]")
run(visualize.main, "model=timm", "model.name=resnet18", "model.checkpoint=nowhere.pth")
run(visualize.main, "model=python", "model.factory=nowhere.py:net")
run(visualize.main, "model=python", f"model.factory={errors.__file__}:net")
run(visualize.main, "model.mean=[0.5,half,0.5]")
run(visualize.main, "model.mean=[0.5,0.5,0.5]", "model.std=[1]")
run(visualize.main, "model.size=large")
run(visualize.main, "evaluation.judges=[3]")
run(visualize.main, "evaluation.judges=[{sorce:timm}]")
run(mine.main, "k=0")
run(mine.main, "images=nowhere")
run(evaluate.main, "run=nowhere")
run(evaluate.main, "pictures=nowhere")
run(visualize.main, "logger=wandb")
run(report.main, "runs=.", "wandb=true")
run(atlas.main, "wandb=true")
run(evaluate.main, "run=.", "wandb=true")
"""


def test_mistakes_that_need_no_torch_import_none(tmp_path: Path) -> None:
    elsewhere = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    done = subprocess.run(
        [sys.executable, "-c", EARLY],
        capture_output=True,
        text=True,
        check=True,
        env={**elsewhere, "HOME": str(tmp_path)},  # nobody is logged in there
    )
    assert done.stdout.splitlines() == [f"{MISTAKE} False"] * 23, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 23
    asked = zip(lines[-4:], ("logger=wandb", *["wandb=true"] * 3), ("logger.", "", "", ""), strict=True)
    for line, key, group in asked:
        assert f"{key}: no login: add {group}offline=true, run `wandb login`, or set WANDB_API_KEY" in line


def test_a_changed_configuration_is_refused_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    run = (*SHORT, *ON_CPU, "hydra.run.dir=run")
    assert command(*run) == 0
    recorded = {
        path: path.read_bytes() for path in Path("run").rglob("*") if path.suffix in (".yaml", ".jsonl", ".png")
    }
    capsys.readouterr()
    assert command(*run, "seed=1", "optimizer.lr=0.5") == MISTAKE
    line = line_of(capsys)
    assert "hydra.run.dir=" in line
    assert "seed (0 there, 1 now)" in line
    assert "optimizer.lr (1.0 there, 0.5 now)" in line
    assert command(*run, "resume=false") == MISTAKE
    assert "resume=False" in line_of(capsys)
    assert {path: path.read_bytes() for path in recorded} == recorded


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried ..."),
)


@pytest.mark.parametrize(("error", "batch_size"), [(OUT_OF_MEMORY[0], 8), (OUT_OF_MEMORY[1], 8), (OUT_OF_MEMORY[1], 1)])
def test_out_of_memory_says_what_to_try(
    error: Exception, batch_size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(_self: Objective, _pictures: Tensor, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Objective, "__call__", forward)
    assert command(*SHORT, *ON_CPU, "hydra.run.dir=run", f"batch_size={batch_size}") == MISTAKE
    advice = "try batch_size=4" if batch_size > 1 else "image.size"
    line = line_of(capsys)
    assert f"batch_size={batch_size}" in line
    assert advice in line


def test_a_mistake_in_one_job_of_a_sweep_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("-m", "hydra.sweep.dir=sweep", "target.index=0,99")
    assert command(*SHORT, *ON_CPU, *sweep) == MISTAKE
    assert "job 1: target.index=99" in line_of(capsys)
    assert json.loads(Path("sweep/0/results.jsonl").read_text())["status"] == "done"


def test_a_sweep_starts_no_ranks_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "-m", "seed=0,1", "hydra.sweep.dir=sweep", "trainer.devices=2") == MISTAKE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("torchrun --nproc-per-node=2 -m vital_exp visualize -m" in line for line in lines)


def test_a_target_that_fails_leaves_the_others_and_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objective.__call__
    calls: list[None] = []

    def forward(self: Objective, pictures: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses, shares = original(self, pictures, **options)
        calls.append(None)
        return (losses * losses.new_tensor([1.0, torch.nan]) if len(calls) == 2 else losses), shares

    monkeypatch.setattr(Objective, "__call__", forward)
    assert command(*SHORT, *ON_CPU, "steps=3", "target.index=[0,1]", "batch_size=2", "hydra.run.dir=run") == SOME_FAILED
    good, bad = map(json.loads, Path("run/results.jsonl").read_text().splitlines())
    assert (good["status"], bad["status"], bad["image"], bad["loss"]) == ("done", "failed", None, None)
    assert "step 1" in bad["error"]
    assert not Path("run/images/class-1.png").exists()


@pytest.mark.slow
def test_the_module_suggests_the_nearest_command() -> None:
    command_line = [sys.executable, "-m", "vital_exp", "visualise", "steps=3"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == MISTAKE
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean visualize" in done.stderr
