"""Networks that metrics look through, as plug-ins: the built-in world's own, and the published ones from
files that people hold.

A role (judge, features, perceptual, identity, edges, reader) is taken by a network that was asked for, or by
the built-in world's own on pictures of that world. Nothing takes the place of a network that is missing: then
the metric is missing, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import NetworksConfig
from zeroshift.errors import InputError, MissingExtra
from zeroshift.files.faces import IrSe, load_ir_se
from zeroshift.files.formats import unprefixed
from zeroshift.files.layouts import LayoutError, check_shapes
from zeroshift.files.pickles import flat_tensors, read_tensors
from zeroshift.files.registry import ASSETS, CLIPS, load_clip
from zeroshift.files.writing import file_sha256, fingerprint
from zeroshift.measure.backbones import TAPS, Hed, Inception, TappedNet, resize_tensorflow
from zeroshift.portraits import domain_of
from zeroshift.portraits.reader import Reader, load_reader
from zeroshift.shapes import Feature, Picture, UnitFeature

JUDGE = "portraits-judge"
IDENTITY = ASSETS / "identity.safetensors"
READER = ASSETS / "reader.safetensors"

WANTED = {
    "judge": "a CLIP that did not guide: --judge NAME, such as openai/clip-vit-large-patch14",
    "features": "the published Inception: --inception FILE (weights-inception-2015-12-05-6726825d.pth of "
    "torch-fidelity or "
    "pt_inception-2015-12-05-6726825d.pth of pytorch-fid), or --inception fidelity with the extra of that "
    "name",
    "perceptual": "the VGG16 or AlexNet of LPIPS: --lpips FILE (vgg16-397923af.pth or "
    "alexnet-owt-7be5be79.pth of torchvision), "
    "or --lpips vgg with the extra `fidelity`",
    "identity": "a face network: --identity FILE (model_ir_se50.pth)",
    "edges": "the edge network HED: --edges FILE (network-bsds500.pytorch)",
}
"""Role -> what takes it outside the built-in world, and how to get it."""


class Sight(NamedTuple):
    """What a network sees in pictures: features BE, class probabilities BK of one or several questions, an
    early map BCHW."""

    features: Feature
    classes: tuple[Tensor, ...]
    early: Tensor


@dataclass(frozen=True)
class Label:
    """What the record says about a network. `resize`: how it brings pictures to its own size."""

    name: str
    sha256: str
    resize: str


class Plugin(Protocol):
    """What every network has."""

    @property
    def label(self) -> Label:
        """Its name, hash and resize filter."""
        ...


class SeesAll(Plugin, Protocol):
    """Role `features`: what sets of pictures are compared by."""

    def see(self, pictures: Picture) -> Sight: ...


class SeesDetail(Plugin, Protocol):
    """Role `perceptual`: maps BCHW whose differences people notice, and weights per map, None for 1."""

    @property
    def weights(self) -> list[Tensor] | None: ...

    def maps(self, pictures: Picture) -> list[Tensor]: ...


class SeesWho(Plugin, Protocol):
    """Role `identity`: unit features BE of the person."""

    def embed(self, pictures: Picture) -> UnitFeature: ...


class SeesEdges(Plugin, Protocol):
    """Role `edges`: edge maps B1HW, not negative."""

    def edges(self, pictures: Picture) -> Tensor: ...


class Judge:
    """Role `judge`: any CLIP."""

    def __init__(self, clip: ClipModel) -> None:
        self.clip = clip
        self.label = Label(
            clip.name,
            fingerprint(clip.state_dict()),
            f"bicubic, {clip.resize}, centre square of {clip.resolution} px",
        )

    def features(self, pictures: Picture) -> UnitFeature:
        """Unit features BE."""
        return normalize(self.clip.encode_image(pictures))


class PortraitsJudge(Judge):
    """The judging CLIP of the built-in world, which takes the roles `features` and `perceptual` there too.

    Its classes are the choices of every attribute, asked for in the words of the target domain. Its maps are
    those of the stem and the stages of its convolutional tower, the stem's the early one.
    """

    weights = None

    def __init__(self, clip: ClipModel, target: str = "photo") -> None:
        super().__init__(clip)
        self.prompts = attribute_features(clip, target)

    def maps(self, pictures: Picture) -> list[Tensor]:
        """Maps BCHW of the stem and the stages."""
        return list(self._tower(pictures).hidden_states)

    def see(self, pictures: Picture) -> Sight:
        """Unit features, the probabilities of every attribute's choices, and the stem's map."""
        seen = self._tower(pictures)
        features = normalize(self.clip.model.visual_projection(seen.pooler_output.flatten(1)))
        classes = tuple(
            (self.clip.logit_scale * features @ texts.T).softmax(dim=1) for texts in self.prompts.values()
        )
        return Sight(features, classes, seen.hidden_states[0])

    def _tower(self, pictures: Picture) -> Any:
        pixels = self.clip.preprocess(pictures).contiguous(memory_format=self.clip.memory_format)
        return self.clip.model.vision_model(pixel_values=pixels, output_hidden_states=True)


@torch.no_grad()
def attribute_features(clip: ClipModel, label: str = "photo") -> dict[str, UnitFeature]:
    """Unit text features KE of every attribute's choices in the built-in world, of pictures that `label`
    names."""
    from zeroshift.portraits.captions import attribute_prompts
    from zeroshift.portraits.scene import CHOICES

    return {
        name: normalize(clip.encode_text(attribute_prompts(name, f"a {label} of a person")))
        for name in CHOICES
    }


class InceptionSees:
    """The published Inception, as torch-fidelity and the original scores feed it; its early map at the
    pictures' own size."""

    def __init__(self, network: Inception, sha256: str) -> None:
        self.network = network
        self.label = Label(
            "Inception v3 (2015-12-05)",
            sha256,
            "bilinear to 299 px as TensorFlow 1, not antialiased; SIFID: none",
        )

    def see(self, pictures: Picture) -> Sight:
        """Pooled features of 2048 numbers, probabilities of 1008 classes, and the 64-channel map before the
        first maximum."""
        pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round()
        features, logits = self.network((resize_tensorflow(pixels, 299) - 128) / 128)
        return Sight(features, (logits.softmax(dim=1),), self.network.early((pixels - 128) / 128))


class LpipsSees:
    """LPIPS 0.1 with VGG16 or AlexNet, at the pictures' own size."""

    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, network: TappedNet, weights: list[Tensor], label: Label) -> None:
        self.network, self.label = network, label
        self.weights = weights

    def maps(self, pictures: Picture) -> list[Tensor]:
        """Five maps."""
        shift, scale = (pictures.new_tensor(each).view(1, 3, 1, 1) for each in (self.SHIFT, self.SCALE))
        return self.network((pictures - shift) / scale)


class IrSeSees:
    """ArcFace, or the built-in world's encoder."""

    def __init__(self, network: IrSe, name: str, sha256: str) -> None:
        self.network, self.label = network, Label(name, sha256, network.resize)

    def embed(self, pictures: Picture) -> UnitFeature:
        """Unit features of the person."""
        return self.network.embed(pictures)


class HedSees:
    """HED at the pictures' own size."""

    def __init__(self, network: Hed, sha256: str) -> None:
        self.network, self.label = network, Label("HED (BSDS500)", sha256, "none")

    def edges(self, pictures: Picture) -> Tensor:
        """Edges in [0, 1]."""
        return self.network(pictures)


class Sobel:
    """Length of the gradient of luminance by Sobel's filters: the edges of the built-in world, where HED
    would see only blur."""

    label = Label("Sobel gradient (a filter, no weights)", "", "none")

    def edges(self, pictures: Picture) -> Tensor:
        """Edges, 0 on flat ground and at most about 11 (luminance in [-1, 1])."""
        grey = (pictures * pictures.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(
            dim=1, keepdim=True
        )
        across = pictures.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        kernels = torch.stack([across, across.T])[:, None]
        return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)


class WorldReader:
    """Role `reader`: which choice of every attribute the pictures of one domain of the built-in world
    show."""

    def __init__(self, reader: Reader, domain: str) -> None:
        self.reader, self.domain = reader, domain
        self.label = Label(f"portraits-reader ({domain})", reader.sha256, reader.network.resize)

    def read(self, pictures: Picture) -> Tensor:
        """Choices BA as numbers, attributes in the order of CHOICES."""
        return torch.stack([*self.reader.read(self.reader.features(pictures), self.domain).values()], dim=1)


@dataclass(frozen=True)
class Networks:
    """One network per role; None where none takes it."""

    judge: Judge | None = None
    features: SeesAll | None = None
    perceptual: SeesDetail | None = None
    identity: SeesWho | None = None
    edges: SeesEdges | None = None
    reader: WorldReader | None = None

    def labels(self) -> dict[str, Label]:
        """Labels by role, of the roles that are taken."""
        taken = {each.name: getattr(self, each.name) for each in fields(self)}
        return {role: network.label for role, network in taken.items() if network is not None}


def open_networks(
    config: NetworksConfig, portraits: bool = False, target: str = "photo", device: str | torch.device = "cpu"
) -> Networks:
    """The networks that a config names; on pictures of the built-in world that world's own take the roles
    left open.

    InputError where a file is missing, is another network, or needs an extra that is not installed.
    """
    spec = config.judge or (JUDGE if portraits else "")
    judge = None
    if spec:
        clip = load_clip(spec, device=device)
        judge = PortraitsJudge(clip, target) if portraits and spec in CLIPS else Judge(clip)
    world: Any = judge if isinstance(judge, PortraitsJudge) else None
    return Networks(
        judge,
        load_inception(config.inception, device) if config.inception else world,
        load_lpips(config.lpips, device) if config.lpips else world,
        open_identity(config.identity, portraits, device),
        load_hed(config.edges, device) if config.edges else Sobel() if portraits else None,
        _world_reader(target, device) if portraits else None,
    )


def load_inception(spec: str, device: str | torch.device = "cpu") -> InceptionSees:
    """The published Inception of a file, or "fidelity" for the one that torch-fidelity downloads."""
    if spec == "fidelity":
        state = _from_extra(
            "inception", spec, "torch_fidelity.feature_extractor_inceptionv3", _inception_state
        )
        return InceptionSees(_filled(Inception(), state, spec, device), fingerprint(state))
    return InceptionSees(_filled(Inception(), _weights(spec, "features"), spec, device), file_sha256(spec))


def load_lpips(spec: str, device: str | torch.device = "cpu") -> LpipsSees:
    """LPIPS with the VGG16 or AlexNet of a file, told apart by content, or "vgg" or "alex" for torchvision's
    download.

    The linear layers of LPIPS 0.1 are those that torchmetrics ships.
    """
    extra = spec in TAPS and not Path(spec).is_file()
    if extra:
        state = _from_extra(
            "lpips", spec, "torchvision.models", lambda models: _torchvision_state(models, spec)
        )
    else:
        state = _weights(spec, "perceptual")
    state = {name: value for name, value in state.items() if name.startswith("features.")}
    first = state["features.0.weight"].shape[-1] if "features.0.weight" in state else 0
    kind = {3: "vgg", 11: "alex"}.get(first, "vgg")
    network = _filled(TappedNet(kind), state, spec, device)
    linear = _linear_file(kind)
    layers = flat_tensors(read_tensors(linear).tree)
    weights = [layers[f"lin{number}.model.1.weight"].flatten().clone().to(device) for number in range(5)]
    backbone = fingerprint(state) if extra else file_sha256(spec)
    name = {"vgg": "LPIPS 0.1 (VGG16)", "alex": "LPIPS 0.1 (AlexNet)"}[kind]
    return LpipsSees(network, weights, Label(name, f"{backbone}+{file_sha256(linear)}", "none"))


def load_hed(spec: str, device: str | torch.device = "cpu") -> HedSees:
    """HED of a file, under the names that its PyTorch port has had (moduleVggOne, netVggOne)."""
    state = {name.replace("module", "net", 1): value for name, value in _weights(spec, "edges").items()}
    return HedSees(_filled(Hed(), state, spec, device), file_sha256(spec))


def open_identity(spec: str, portraits: bool, device: str | torch.device = "cpu") -> IrSeSees | None:
    """The face network of a file; where none is named, on pictures of the built-in world that world's own."""
    spec = spec or (str(IDENTITY) if portraits and IDENTITY.is_file() else "")
    return _load_identity(spec, device) if spec else None


def _load_identity(spec: str, device: str | torch.device) -> IrSeSees:
    _there(spec, "identity")
    network, sha256 = load_ir_se(spec)
    name = "portraits-identity" if Path(spec) == IDENTITY else f"ArcFace IR-SE ({Path(spec).name})"
    return IrSeSees(network.to(device), name, sha256)


def _world_reader(target: str, device: str | torch.device) -> WorldReader | None:
    """The attribute reader for the domain that a target names; None where it names none."""
    domain = domain_of(target)
    if domain is None or not (READER.is_file() and IDENTITY.is_file()):
        return None
    reader = load_reader(READER, IDENTITY, device)
    return WorldReader(reader, domain) if domain in reader.heads else None


def _there(spec: str, role: str) -> None:
    if not Path(spec).is_file():
        raise InputError(f"{spec} is no file. The metric needs {WANTED[role]}.")


def _weights(spec: str, role: str) -> dict[str, Tensor]:
    """Tensors of a weights file by name; nothing in it is executed."""
    _there(spec, role)
    content = read_tensors(spec)
    if content.kind == "torchscript":
        raise InputError(
            f"{spec} is a TorchScript program, which is not run here. The metric needs {WANTED[role]}."
        )
    return unprefixed(flat_tensors(content.tree))


Module = TypeVar("Module", bound=nn.Module)


def _filled(network: Module, state: Mapping[str, Tensor], spec: str, device: str | torch.device) -> Module:
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
            '"zeroshift[fidelity]", '
            f"or give the weights as a file."
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


def _linear_file(kind: str) -> Path:
    spec = find_spec("torchmetrics")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "functional" / "image" / "lpips_models" / f"{kind}.pth"
