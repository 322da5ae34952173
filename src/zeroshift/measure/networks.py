"""Networks that metrics look through: a world's own, and the published ones from files that people hold.

A role (judge, features, perceptual, identity, edges, reader) is taken by the network that was asked for, or
on pictures of a world by the world's own. Nothing takes the place of a network that is missing: then the
metric is missing, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import NetworksConfig
from zeroshift.errors import InputError, MissingExtra
from zeroshift.files.faces import IrSe, load_ir_se
from zeroshift.files.formats import unprefixed
from zeroshift.files.layouts import LayoutError, check_shapes
from zeroshift.files.pickles import flat_tensors, read_tensors
from zeroshift.files.registry import load_clip
from zeroshift.files.writing import file_sha256, fingerprint
from zeroshift.measure.backbones import TAPS, Hed, Inception, TappedNet, resize_tensorflow
from zeroshift.shapes import Feature, Picture, UnitFeature
from zeroshift.worlds.roles import AttributeReader, EdgeNetwork, Network, NetworkRecord
from zeroshift.worlds.world import World

LPIPS_LAYERS = Path(__file__).parent / "assets"
"""Folder of the linear layers of LPIPS 0.1, per backbone."""

HOW_TO_GET = {
    "judge": "a CLIP that did not guide: --judge NAME, such as openai/clip-vit-large-patch14",
    "features": "the published Inception: --inception FILE (weights-inception-2015-12-05-6726825d.pth of "
    "torch-fidelity or pt_inception-2015-12-05-6726825d.pth of pytorch-fid), or --inception fidelity with "
    "the extra of that name",
    "perceptual": "the VGG16 or AlexNet of LPIPS: --lpips FILE (vgg16-397923af.pth or "
    "alexnet-owt-7be5be79.pth of torchvision), or --lpips vgg with the extra `fidelity`",
    "identity": "a face network: --identity FILE (model_ir_se50.pth)",
    "edges": "the edge network HED: --edges FILE (network-bsds500.pytorch)",
}
"""Role -> the network that takes it where no world brings one, and where to get it."""


# What takes a role.


class NetworkOutput(NamedTuple):
    """What a network of the role `features` gives for pictures B."""

    features: Feature
    """BE: what sets of pictures are compared by."""
    classes: tuple[Tensor, ...]
    """Probabilities BK of the answers to one or several questions; none where the network is asked
    nothing."""
    early_map: Tensor
    """BCHW: a map from near the pixels, whose positions show texture."""


class FeatureNetwork(Network, Protocol):
    """Role `features`: compares sets of pictures."""

    def encode(self, pictures: Picture) -> NetworkOutput:
        """Features, class probabilities and an early map of pictures BCHW in [-1, 1]."""
        ...


class PerceptualNetwork(Network, Protocol):
    """Role `perceptual`: gives maps whose differences people notice."""

    @property
    def weights(self) -> list[Tensor] | None:
        """Weight (C,) of every channel, per map; None where all are 1."""
        ...

    def maps(self, pictures: Picture) -> list[Tensor]:
        """Maps BCHW, from fine to coarse, of pictures BCHW in [-1, 1]."""
        ...


class IdentityNetwork(Network, Protocol):
    """Role `identity`: tells people apart."""

    def embed(self, pictures: Picture) -> UnitFeature:
        """Unit features BE of whom pictures BCHW in [-1, 1] show. Differentiable."""
        ...


class Judge:
    """Role `judge`: any CLIP."""

    def __init__(self, clip: ClipModel) -> None:
        self.clip = clip
        self.record = NetworkRecord(
            clip.name,
            fingerprint(clip.state_dict()),
            f"bicubic, {clip.resize}, centre square of {clip.resolution} px",
        )

    def features(self, pictures: Picture) -> UnitFeature:
        """Unit features BE of pictures BCHW in [-1, 1]."""
        return normalize(self.clip.encode_image(pictures))


class WorldJudge(Judge):
    """A judging CLIP that knows a world's pictures, and so takes the roles `features` and `perceptual` there
    too. Its tower must be convolutional.

    Its classes are the choices of every attribute of the world, asked for in the words of the target. Its
    maps are those of the stem and the stages of its tower, the stem's being the early one.
    """

    weights = None

    def __init__(self, clip: ClipModel, world: World, target: str) -> None:
        super().__init__(clip)
        self.prompts = attribute_features(clip, world, target)

    def maps(self, pictures: Picture) -> list[Tensor]:
        """Maps BCHW of the stem and the stages."""
        return list(self._tower(pictures).hidden_states)

    def encode(self, pictures: Picture) -> NetworkOutput:
        """Unit features, the probabilities of every attribute's choices, and the stem's map."""
        found = self._tower(pictures)
        features = normalize(self.clip.model.visual_projection(found.pooler_output.flatten(1)))
        classes = tuple(
            (self.clip.logit_scale * features @ texts.T).softmax(dim=1) for texts in self.prompts.values()
        )
        return NetworkOutput(features, classes, found.hidden_states[0])

    def _tower(self, pictures: Picture) -> Any:
        pixels = self.clip.preprocess(pictures).contiguous(memory_format=self.clip.memory_format)
        return self.clip.model.vision_model(pixel_values=pixels, output_hidden_states=True)


@torch.no_grad()
def attribute_features(clip: ClipModel, world: World, label: str) -> dict[str, UnitFeature]:
    """Unit text features KE of the choices of every attribute of a world, said of pictures that `label`
    names."""
    return {name: normalize(clip.encode_text(world.prompts(name, label))) for name in world.choices}


class FidInception:
    """Role `features`: the published Inception, fed as torch-fidelity and the original scores feed it; its
    early map comes from pictures of their own size."""

    def __init__(self, network: Inception, sha256: str) -> None:
        self.network = network
        self.record = NetworkRecord(
            "Inception v3 (2015-12-05)",
            sha256,
            "bilinear to 299 px as TensorFlow 1, not antialiased; SIFID: none",
        )

    def encode(self, pictures: Picture) -> NetworkOutput:
        """Pooled features of 2048 numbers, probabilities of 1008 classes, and the 64-channel map before the
        first maximum."""
        pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round()
        features, logits = self.network((resize_tensorflow(pixels, 299) - 128) / 128)
        return NetworkOutput(features, (logits.softmax(dim=1),), self.network.early((pixels - 128) / 128))


class Lpips:
    """Role `perceptual`: LPIPS 0.1 with VGG16 or AlexNet, at the pictures' own size."""

    SHIFT = (-0.030, -0.088, -0.188)
    SCALE = (0.458, 0.448, 0.450)

    def __init__(self, network: TappedNet, weights: list[Tensor], record: NetworkRecord) -> None:
        self.network = network
        self.weights = weights
        self.record = record

    def maps(self, pictures: Picture) -> list[Tensor]:
        """The five maps that LPIPS reads, BCHW."""
        shift, scale = (pictures.new_tensor(each).view(1, 3, 1, 1) for each in (self.SHIFT, self.SCALE))
        return self.network((pictures - shift) / scale)


class FaceNetwork:
    """Role `identity`: ArcFace's IR-SE50, or a world's own network of that kind."""

    def __init__(self, network: IrSe, name: str, sha256: str) -> None:
        self.network = network
        self.record = NetworkRecord(name, sha256, network.resize)

    def embed(self, pictures: Picture) -> UnitFeature:
        """Unit features BE of whom pictures BCHW in [-1, 1] show."""
        return self.network.embed(pictures)


class HedEdges:
    """Role `edges`: HED, at the pictures' own size."""

    def __init__(self, network: Hed, sha256: str) -> None:
        self.network = network
        self.record = NetworkRecord("HED (BSDS500)", sha256, "none")

    def edges(self, pictures: Picture) -> Tensor:
        """Edge maps B1HW in [0, 1]."""
        return self.network(pictures)


@dataclass(frozen=True)
class Networks:
    """One network per role; None where none takes it."""

    judge: Judge | None = None
    features: FeatureNetwork | None = None
    perceptual: PerceptualNetwork | None = None
    identity: IdentityNetwork | None = None
    edges: EdgeNetwork | None = None
    reader: AttributeReader | None = None

    def records(self) -> dict[str, NetworkRecord]:
        """Role -> record of its network, of the roles that are taken."""
        taken = {each.name: getattr(self, each.name) for each in fields(self)}
        return {role: network.record for role, network in taken.items() if network is not None}


# Opening them.


def open_networks(
    config: NetworksConfig,
    world: World | None = None,
    target: str | None = None,
    device: str | torch.device = "cpu",
) -> Networks:
    """The networks that a config names; on pictures of a world, the world's own take the roles left open.
    `target` is the label of the pictures to be looked at; None stands for the world's source.

    InputError where a file is missing, is another network, or needs an extra that is not installed.
    """
    label = target or (world.source if world else "")
    judge = _open_judge(config.judge, world, label, device)
    own = judge if isinstance(judge, WorldJudge) else None
    edges = load_hed(config.edges, device) if config.edges else world.open_edges(device) if world else None
    return Networks(
        judge,
        load_inception(config.inception, device) if config.inception else own,
        load_lpips(config.lpips, device, config.lpips_layers) if config.lpips else own,
        open_identity(config.identity, world, device),
        edges,
        world.open_reader(label, device) if world else None,
    )


def _open_judge(spec: str, world: World | None, label: str, device: str | torch.device) -> Judge | None:
    """The CLIP that was asked for, else the world's. Where the world says that it knows its pictures, and its
    tower has maps, it can take more roles than that of the judge."""
    clip = load_clip(spec, device=device) if spec else world.open_judge(device) if world else None
    if clip is None:
        return None
    if world is not None and clip.convolutional and (not spec or spec in (world.judge, *world.clips)):
        return WorldJudge(clip, world, label)
    return Judge(clip)


def load_inception(spec: str, device: str | torch.device = "cpu") -> FidInception:
    """The published Inception of a file, or "fidelity" for the one that torch-fidelity downloads."""
    if spec == "fidelity":
        state = _from_extra(
            "inception", spec, "torch_fidelity.feature_extractor_inceptionv3", _inception_state
        )
        return FidInception(_loaded(Inception(), state, spec, device), fingerprint(state))
    return FidInception(
        _loaded(Inception(), _read_weights(spec, "features"), spec, device), file_sha256(spec)
    )


def load_lpips(spec: str, device: str | torch.device = "cpu", layers: str = "") -> Lpips:
    """LPIPS with the VGG16 or AlexNet of a file, told apart by content, or "vgg" or "alex" for torchvision's
    download.

    `layers` is a file of linear layers, as the authors publish them (lpips/weights/v0.1/vgg.pth); empty:
    those of LPIPS 0.1, which ship with the package.
    """
    extra = spec in TAPS and not Path(spec).is_file()
    if extra:
        state = _from_extra(
            "lpips", spec, "torchvision.models", lambda models: _torchvision_state(models, spec)
        )
    else:
        state = _read_weights(spec, "perceptual")
    state = {name: value for name, value in state.items() if name.startswith("features.")}
    first = state["features.0.weight"].shape[-1] if "features.0.weight" in state else 0
    kind = {3: "vgg", 11: "alex"}.get(first, "vgg")
    network = _loaded(TappedNet(kind), state, spec, device)
    file = Path(layers) if layers else LPIPS_LAYERS / f"lpips_{kind}.safetensors"
    weights = [each.to(device) for each in _lpips_layers(file, kind)]
    backbone = fingerprint(state) if extra else file_sha256(spec)
    name = {"vgg": "LPIPS 0.1 (VGG16)", "alex": "LPIPS 0.1 (AlexNet)"}[kind]
    if layers:
        name += f", layers of {file.name}"
    return Lpips(network, weights, NetworkRecord(name, f"{backbone}+{file_sha256(file)}", "none"))


def _lpips_layers(file: Path, kind: str) -> list[Tensor]:
    """Weight (C,) of every channel of the five maps. InputError where the file is not of this backbone."""
    if not file.is_file():
        raise InputError(
            f"{file} is no file. Linear layers of LPIPS are vgg.pth or alex.pth of its authors; without "
            "--lpips-layers those of LPIPS 0.1 are taken."
        )
    found = flat_tensors(read_tensors(file).tree)
    taps = TAPS[kind]
    weights = []
    for number, place in enumerate(taps.read):
        value = found.get(f"lin{number}.model.1.weight", torch.empty(0)).flatten()
        if len(value) != (channels := taps.convolutions[place][1]):
            raise InputError(
                f"{file} holds no linear layers of LPIPS for {kind}: lin{number}.model.1.weight must have "
                f"{channels} numbers, it has {len(value)}."
            )
        weights.append(value.float())
    return weights


def load_hed(spec: str, device: str | torch.device = "cpu") -> HedEdges:
    """HED of a file, under the names that its PyTorch port has had (moduleVggOne, netVggOne)."""
    state = {name.replace("module", "net", 1): value for name, value in _read_weights(spec, "edges").items()}
    return HedEdges(_loaded(Hed(), state, spec, device), file_sha256(spec))


def open_identity(spec: str, world: World | None, device: str | torch.device = "cpu") -> FaceNetwork | None:
    """The face network of a file; where none is named, the world's own; None where there is neither.
    InputError where the file is missing or holds another network."""
    own = world.identity if world is not None else None
    if not spec:
        if own is None or not own.is_file():
            return None
        spec = str(own)
    _require_file(spec, "identity")
    network, sha256 = load_ir_se(spec)
    name = f"ArcFace IR-SE ({Path(spec).name})"
    if world is not None and Path(spec) == own:
        name = f"{world.name}-identity"
    return FaceNetwork(network.to(device), name, sha256)


def _require_file(spec: str, role: str) -> None:
    if not Path(spec).is_file():
        raise InputError(f"{spec} is no file. The metric needs {HOW_TO_GET[role]}.")


def _read_weights(spec: str, role: str) -> dict[str, Tensor]:
    """Tensors of a weights file by name; nothing in it is executed."""
    _require_file(spec, role)
    content = read_tensors(spec)
    if content.kind == "torchscript":
        raise InputError(
            f"{spec} is a TorchScript program, which is not run here. The metric needs {HOW_TO_GET[role]}."
        )
    return unprefixed(flat_tensors(content.tree))


Module = TypeVar("Module", bound=nn.Module)


def _loaded(network: Module, state: Mapping[str, Tensor], spec: str, device: str | torch.device) -> Module:
    """A network with these weights, frozen, in evaluation mode. InputError names the first tensor that does
    not fit."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    try:
        check_shapes(state, shapes, [name for name in shapes if name.endswith("num_batches_tracked")])
    except LayoutError as error:
        raise InputError(f"{spec} is not a {type(network).__name__} network: it {error}.") from error
    network.load_state_dict(dict(state), strict=False)
    return network.eval().requires_grad_(False).to(device)


def _from_extra(
    option: str, word: str, module: str, state_of: Callable[[Any], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Weights that a package of the extra `fidelity` downloads, with its own progress bar."""
    try:
        found = import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"--{option} {word} needs the extra `fidelity`, which is not installed ({error}): pip install "
            '"zeroshift[fidelity]", or give the weights as a file.'
        ) from error
    try:
        return {name: value.detach() for name, value in state_of(found).items()}
    except OSError as error:
        raise InputError(
            f"the weights for --{option} {word} could not be downloaded ({error}); give them as a file."
        ) from error


def _inception_state(module: Any) -> Mapping[str, Tensor]:
    return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()


def _torchvision_state(models: Any, kind: str) -> Mapping[str, Tensor]:
    made = {"vgg": models.vgg16, "alex": models.alexnet}[kind]
    return made(weights="IMAGENET1K_V1").state_dict()
