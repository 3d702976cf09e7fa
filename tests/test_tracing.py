"""Which axes of a layer's output are the pictures' and the channels', and what of them depends on their company."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import load_model, mine, visualize
from vital_exp.errors import UsageError
from vital_exp.models.layers import describe_layers, layer_shapes, unit_shapes
from vital_exp.models.layout import Layout
from vital_exp.models.network import VisionNetwork
from vital_exp.models.tracing import trace
from vital_exp.relevance import relevance_maps

SIDE = 32
ON_CPU = ["trainer.accelerator=cpu", "batch_size=2"]


class Stack(nn.Module):
    """A convolution to 8 channels of an 8 x 8 map, an arrangement of one's own, and a classifier of the means.

    Args:
        arrange: what happens between; takes and returns (N, 8, 8, 8) and may use the module's other parts.
        parts: modules by name.
    """

    def __init__(self, arrange: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        for name, part in parts.items():
            self.add_module(name, part)
        self.arrange = arrange

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        logits: Tensor = self.head(self.arrange(self, self.conv(pictures)).mean((2, 3)))
        return logits


def last(net: nn.Module, x: Tensor) -> Tensor:
    """Channels last for a while."""
    return net.fc2(net.act(net.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


def sequence_first(net: nn.Module, x: Tensor) -> Tensor:
    """Tokens, then pictures, then channels, as nn.TransformerEncoderLayer has them by default."""
    return net.mix(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).unflatten(2, (8, 8))


def windows(net: nn.Module, x: Tensor) -> Tensor:
    """Windows of 4 x 4 beside the pictures, as in Swin."""
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    mixed = net.mix(parts).view(n, h // 4, w // 4, 4, 4, c)
    return mixed.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def windows_outside(net: nn.Module, x: Tensor) -> Tensor:
    """The same windows with all pictures of a window together."""
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 4, 4, w // 4, 4).permute(2, 4, 0, 3, 5, 1).reshape(-1, 16, c)
    mixed = net.mix(parts).view(h // 4, w // 4, n, 4, 4, c)
    return mixed.permute(2, 5, 0, 3, 1, 4).reshape(n, c, h, w)


def shuffled(net: nn.Module, x: Tensor) -> Tensor:
    """Groups of channels interleaved, then an operation without weights."""
    return net.act(x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2))


def heads(net: nn.Module, x: Tensor) -> Tensor:
    """Two heads of attention whose weights have no channels."""
    q, k, v = x.flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2).expand(3, -1, -1, -1, -1)
    mixed = net.drop((q @ k.transpose(-2, -1)).softmax(-1)) @ v  # (N, 2, 64, 4)
    return net.project(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (8, 8))


def wide() -> dict[str, nn.Module]:
    """Parts of :func:`last`."""
    return {"fc1": nn.Linear(8, 24), "act": nn.GELU(), "fc2": nn.Linear(24, 8)}


def mixing(batch_first: bool) -> dict[str, nn.Module]:
    """Parts of windows and sequences."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, dropout=0)
    return {"mix": layer}


# Arrangement, parts, a layer of it, its shape for one picture.
MEMBERS = [
    (last, wide, "act", (24, 8, 8)),
    (last, wide, "fc1", (24, 8, 8)),
    (sequence_first, lambda: mixing(False), "mix", (8, 64)),
    (windows, lambda: mixing(True), "mix", (8, 64)),
    (windows, lambda: mixing(True), "mix.linear1", (12, 64)),
    (windows_outside, lambda: mixing(True), "mix", (8, 64)),
    (shuffled, lambda: {"act": nn.GELU()}, "act", (8, 8, 8)),
    (heads, lambda: {"drop": nn.Dropout(), "project": nn.Linear(8, 8)}, "project", (8, 64)),
]


Arrangement = Callable[[nn.Module, Tensor], Tensor]


def named(value: object) -> str:
    """What a test's member is called."""
    return str(getattr(value, "__name__", value))


def network_of(arrange: Arrangement, parts: Callable[[], dict[str, nn.Module]]) -> VisionNetwork:
    torch.manual_seed(0)
    return load_model(Stack(arrange, **parts()), size=SIDE)


@pytest.mark.parametrize(("arrange", "parts", "layer", "shape"), MEMBERS, ids=named)
def test_axes_are_traced(arrange: object, parts: object, layer: str, shape: tuple[int, ...]) -> None:
    """The shape is right, and each picture's activation is the one it has alone."""
    network = network_of(arrange, parts)  # type: ignore[arg-type]
    assert unit_shapes(network)[layer] == shape
    pictures = torch.rand(4, 3, SIDE, SIDE)
    together = network.taps([layer])(pictures)[0][layer]
    alone = torch.cat([network.taps([layer])(one[None])[0][layer] for one in pictures])
    assert together.shape == (4, *shape)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not network.trace.one_by_one


@pytest.mark.parametrize(("arrange", "parts", "layer", "shape"), MEMBERS[2:6], ids=named)
def test_what_is_read_can_be_put_back(arrange: object, parts: object, layer: str, shape: tuple[int, ...]) -> None:
    network, outputs = network_of(arrange, parts), []  # type: ignore[arg-type]
    pictures = torch.rand(2, 3, SIDE, SIDE)
    hook = network.module.get_submodule(layer).register_forward_hook(lambda _m, _i, out: outputs.append(out))
    network.module(pictures)
    hook.remove()
    layout = network.trace.layers[layer].layout
    assert torch.equal(layout.restore(layout.channels_first(outputs[0], 2), outputs[0], 2), outputs[0])


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        (Layout(), (2, 5, 3, 4), (2, 5, 3, 4)),
        (Layout(channels=3), (2, 3, 4, 5), (2, 5, 3, 4)),
        (Layout(channels=2, pictures=1), (7, 2, 5), (2, 5, 7)),
        (Layout(), (2, 5), (2, 5, 1)),
        (Layout(channels=4), (2, 3, 4, 6, 5), (2, 5, 72)),
        (Layout(channels=2, windowed=True), (6, 4, 5), (2, 5, 12)),
        (Layout(channels=2, windowed=True, picture_by_picture=False), (6, 4, 5), (2, 5, 12)),
    ],
)
def test_channels_first_and_back(layout: Layout, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    output = torch.rand(shape)
    activation = layout.channels_first(output, 2)
    assert activation.shape == expected
    assert torch.equal(layout.restore(activation, output, 2), output)
    of_three = layout.restore(activation[[0, 1, 0]], output, 2)
    assert torch.equal(layout.channels_first(of_three, 3), activation[[0, 1, 0]])


def test_a_layer_without_channels_is_refused_by_its_name() -> None:
    network = network_of(heads, lambda: {"drop": nn.Dropout(), "project": nn.Linear(8, 8)})
    assert "drop" not in layer_shapes(network)
    assert "cannot be read: drop, which axis holds its channels is not known" in describe_layers(network)
    for call in (
        lambda: visualize(network, ["drop:1"], method="fourier", steps=1, overrides=ON_CPU),
        lambda: mine(network, ["drop"], "."),
        lambda: relevance_maps(network, torch.rand(1, 3, SIDE, SIDE), "drop:0", ["conv"]),
    ):
        with pytest.raises(UsageError, match=r"=drop: which axis holds its channels is not known: it returns \["):
            call()


REAL = [
    (lambda: torchvision.models.convnext_tiny(), 32, "features.1.0.block.4", 384),
    (lambda: torchvision.models.swin_t(), 32, "permute", 768),
    (lambda: torchvision.models.swin_t(), 32, "features.1.0.mlp.1", 384),
    (lambda: torchvision.models.shufflenet_v2_x0_5(), 32, "stage2.0", 48),
    (
        lambda: torchvision.models.maxvit.MaxVit((64, 64), 16, 2, [16], [1], 8, 0.0, num_classes=4),
        64,
        "blocks.0.layers.0.layers.window_attention.attn_layer.0",
        16,
    ),
    (lambda: timm.create_model("tnt_s_legacy_patch16_224", depth=1, img_size=64), 64, "pixel_embed", 24),
    (
        lambda: timm.create_model("swinv2_cr_tiny_ns_224", img_size=64, depths=(1, 1, 1, 1)),
        64,
        "stages.0.blocks.0.mlp.act",
        384,
    ),
    (lambda: timm.create_model("xcit_nano_12_p16_224", depth=1, img_size=64), 64, "blocks.0", 128),
]


@pytest.mark.parametrize(("build", "size", "layer", "channels"), REAL, ids=[member[2] for member in REAL])
def test_channels_of_real_architectures(build: Callable[[], nn.Module], size: int, layer: str, channels: int) -> None:
    network = load_model(build(), size=size)
    assert unit_shapes(network)[layer][0] == channels
    assert not network.trace.one_by_one
    assert network.taps([layer])(torch.rand(2, 3, size, size))[0][layer].shape == (2, *unit_shapes(network)[layer])


class BatchStatistics(nn.Module):
    """Each picture's activations depend on the others'."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.net, self.norm = tiny_net(), norm

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        net = self.net
        return net.fc(net.layer1(self.norm(net.conv1(pictures))).mean((2, 3)))  # type: ignore[no-any-return]


class LessTheMean(nn.Module):
    """What no type of module tells."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps less half of their mean over the batch."""
        return maps - maps.mean(0, keepdim=True) / 2


class OneAtATime(nn.Module):
    """Refuses batches."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of one picture."""
        if len(maps) > 1:
            raise RuntimeError("one picture at a time")
        return maps * 2


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8, track_running_stats=False), LessTheMean(), OneAtATime()], ids=lambda n: type(n).__name__
)
def test_a_picture_does_not_depend_on_its_company(norm: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    network, references = load_model(BatchStatistics(norm), size=SIDE), torch.rand(5, 3, SIDE, SIDE)

    def picture(method: str, target: str, company: str) -> Tensor:
        made = visualize(network, [target, company], method=method, references=references, steps=2, overrides=ON_CPU)
        return made.images[0]

    for method, target in (("fourier", "class:1"), ("vital", "class:1"), ("vital_fourier", "net.layer1:1")):
        others = [target.replace("1", "2") if target == "class:1" else "net.layer1:2", target[:-1] + "3"]
        assert torch.equal(*(picture(method, target, other) for other in others)), method
    pictures = torch.rand(3, 3, SIDE, SIDE)
    assert torch.equal(network(pictures)[:1], network(pictures[:1]))
    told = [record.message for record in caplog.records if "pass one by one" in record.message]
    assert len(told) == (not isinstance(norm, OneAtATime))  # once, naming the layer
    assert all("the output of norm for a picture depends on the other pictures" in message for message in told)


def test_honest_networks_pass_together() -> None:
    assert not load_model(tiny_net(), size=SIDE).trace.one_by_one


class Twice(nn.Module):
    """One ReLU for maps of two widths, as in torchvision's Bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(16, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        logits: Tensor = self.fc(self.relu(self.conv2(self.relu(self.conv1(pictures)))).mean((2, 3)))
        return logits


def test_the_first_run_of_a_layer_is_read_everywhere(caplog: pytest.LogCaptureFixture, tmp_path: object) -> None:
    network = load_model(Twice(), size=SIDE)
    assert unit_shapes(network)["relu"] == (8, 16, 16)
    assert network.taps(["relu"])(torch.rand(1, 3, SIDE, SIDE))[0]["relu"].shape == (1, 8, 16, 16)
    assert "ReLU, the first of 2 runs" in describe_layers(network)
    overrides = ["trainer.accelerator=cpu", "relevance=none"]
    references = torch.rand(4, 3, SIDE, SIDE)
    for method in ("fourier", "vital_fourier"):
        made = visualize(network, ["relu:7"], method=method, references=references, steps=2, overrides=overrides)
        assert made.results[0]["status"] == "done"
    with pytest.raises(UsageError, match="relu has 8 channels"):
        visualize(network, ["relu:8"], method="fourier", steps=1, overrides=overrides)
    told = [record.message for record in caplog.records if "runs 2 times in a forward pass" in record.message]
    assert len(told) == 1


class InPlace(nn.Module):
    """Normalises what it is given in place."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        self.change(pictures)
        return self.net(pictures)  # type: ignore[no-any-return]


IN_PLACE = [lambda x: x.mul_(2).sub_(1), lambda x: x[:, 0].fill_(0.5), lambda x: torch.nn.functional.relu_(x)]
OUT_OF_PLACE = [lambda x: x * 2 - 1, lambda x: torch.cat([torch.full_like(x[:, :1], 0.5), x[:, 1:]], 1), torch.relu]


@pytest.mark.parametrize("member", range(3))
@pytest.mark.parametrize("method", ["vital", "accentuation", "fourier"])
def test_a_forward_pass_may_write_into_its_input(member: int, method: str) -> None:
    """The losses are those of the same network that leaves its input alone; nobody's tensors change."""
    given, references = torch.rand(1, 3, SIDE, SIDE), torch.rand(4, 3, SIDE, SIDE)
    copies = given.clone(), references.clone()

    class Plain(InPlace):
        def forward(self, pictures: Tensor) -> Tensor:
            return self.net(self.change(pictures))  # type: ignore[no-any-return]

    totals = []
    for module in (InPlace(tiny_net(), IN_PLACE[member]), Plain(tiny_net(), OUT_OF_PLACE[member])):
        network = load_model(module, mean=[0, 0, 0], std=[1, 1, 1], size=SIDE)
        layers = ["model.layers=[input,net.conv1]"] if method == "vital" else []
        overrides = ["trainer.accelerator=cpu", "transforms=none", *layers]
        made = visualize(
            network, ["class:1"], method=method, references=references, init=given, steps=2, overrides=overrides
        )
        totals.append(made.history["class-1"]["total"])
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(given, copies[0])
    assert torch.equal(references, copies[1])


def test_a_trace_is_of_the_network_as_it_is() -> None:
    """A part that is replaced after the first look is seen."""
    network = load_model(Twice(), size=SIDE)
    assert unit_shapes(network)["conv1"] == (8, 16, 16)
    network.module.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
    assert unit_shapes(network)["conv1"] == (8, 32, 32)


class Halved(torch.autograd.Function):
    """An operation of one's own, whose result is a tensor that nothing is known of."""

    @staticmethod
    def forward(ctx: object, maps: Tensor) -> Tensor:
        return torch.from_numpy(maps.numpy() / 2)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient / 2


def test_outputs_that_no_operation_tells_are_known_by_the_shape_of_the_input() -> None:
    class Own(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return Halved.apply(maps)  # type: ignore[no-any-return]

    found = trace(nn.Sequential(nn.Conv2d(3, 8, 3), Own(), nn.Flatten()).eval(), torch.randn(3, 3, 8, 8))
    assert found.layers["1"].shape == (8, 6, 6)
    assert found.layers["2"].shape == (288, 1)
