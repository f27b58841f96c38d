"""The perceptual loss: each published layout against an independent ResNet-50 and MONAI's arithmetic; foreign files."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.losses.perceptual import RadImageNetPerceptualSimilarity, TorchvisionModelPerceptualSimilarity
from monai.networks.nets import resnet18
from safetensors.torch import save_file
from torch import Tensor, nn

from support.reference_resnet import ReferenceResNet50, reference
from training.checkpoint import CheckpointError
from training.perceptual import PerceptualLoss, ResNet50Features, build_perceptual_loss, load_resnet50

LAYER = "layer4.2.relu_2"


@pytest.fixture(scope="module")
def torchvision_resnet() -> ReferenceResNet50:
    return reference(keras=False)


@pytest.fixture(scope="module")
def keras_resnet() -> ReferenceResNet50:
    return reference(keras=True)


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A folder that is gone after the test: each file of weights has 94 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Two batches [2, 1, 64, 64] in [0, 1], alike as a reconstruction is like its image."""
    generator = torch.Generator().manual_seed(4)
    target = torch.rand(2, 1, 64, 64, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def stand_in(resnet: nn.Module) -> SimpleNamespace:
    """What MONAI's loss of torchvision features asks of itself, with our ResNet-50 in torchvision's place."""
    return SimpleNamespace(final_layer=LAYER, model=SimpleNamespace(forward=lambda x: {LAYER: resnet(x)}))


def hold_to(
    features: ResNet50Features, expected: Tensor, monai_loss: Tensor, prediction: Tensor, target: Tensor
) -> None:
    """Features, loss and gradient are the reference's.

    Tolerance: both sides are float32 through 53 convolutions whose sums may be split differently, 1e-4 of the largest
    feature; the gradient goes back through all of them and through a difference of near features, 1e-3 of its largest.
    """
    ours = features(target)
    assert ours.shape == (2, 2048, 2, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * expected.max().item())
    loss = PerceptualLoss(features)(prediction, target)
    torch.testing.assert_close(loss, monai_loss.mean().detach(), rtol=1e-4, atol=0)
    (wanted,) = torch.autograd.grad(monai_loss.mean(), prediction)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-3 * wanted.abs().max().item())


# --- the published layouts


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bare", "wrapped", "safetensors"])
def test_imagenet_weights_give_the_bundles_loss(form, torchvision_resnet, images, folder) -> None:
    """torchvision's keys as torch.save, as a data-parallel checkpoint (the bundle's `state_dict`), as safetensors."""
    weights = torchvision_resnet.state_dict()
    path = folder / {"bare": "resnet50.pth", "wrapped": "resnet50.pth.tar", "safetensors": "r.safetensors"}[form]
    if form == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    elif form == "wrapped":
        prefixed = {f"module.{key}": tensor for key, tensor in weights.items() if "num_batches" not in key}
        torch.save({"epoch": 90, "state_dict": prefixed}, path)
    else:
        torch.save(weights, path)
    prediction, target = images[0].clone().requires_grad_(), images[1]
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    expected = torchvision_resnet((target.repeat(1, 3, 1, 1) - mean) / std)
    monai_loss = TorchvisionModelPerceptualSimilarity.forward(stand_in(torchvision_resnet), prediction, target)
    hold_to(ResNet50Features(path), expected, monai_loss, prediction, target)


def test_radimagenets_own_weights_are_recognised(torchvision_resnet, images, folder) -> None:
    """Published from a module whose `backbone` is a Sequential of torchvision's children but the classifier.

    The authors' example feeds (pixel - 127.5) * 2 / 255, which is 2x - 1 for x in [0, 1]. MONAI does not load this
    file, so its arithmetic after the features is written out.
    """
    backbone = nn.Module()
    backbone.backbone = nn.Sequential(*list(torchvision_resnet.children())[:9])
    torch.save(backbone.state_dict(), folder / "ResNet50.pt")
    prediction, target = images[0].clone().requires_grad_(), images[1]
    near, far = (torchvision_resnet(2 * x.repeat(1, 3, 1, 1) - 1) for x in (prediction, target))
    near_length, far_length = ((x**2).sum(1, keepdim=True).add(1e-10).sqrt() for x in (near, far))
    distance = ((near / near_length - far / far_length) ** 2).sum(1)
    hold_to(ResNet50Features(folder / "ResNet50.pt"), far, distance, prediction, target)


@pytest.mark.slow
def test_radimagenet_from_keras_is_another_network(keras_resnet, torchvision_resnet, images, folder) -> None:
    """MONAI's `radimagenet_resnet50`: biases, the stride in the first convolution, another epsilon, BGR minus mean."""
    path = folder / "RadImageNet-ResNet50_notop.pth"
    torch.save({key: tensor for key, tensor in keras_resnet.state_dict().items() if not key.startswith("fc.")}, path)
    prediction, target = images[0].clone().requires_grad_(), images[1]
    normalised = target.repeat(1, 3, 1, 1) - torch.tensor((0.406, 0.456, 0.485)).view(3, 1, 1)
    expected = keras_resnet(normalised)
    monai_loss = RadImageNetPerceptualSimilarity.forward(SimpleNamespace(model=keras_resnet), prediction, target)
    features = ResNet50Features(path)
    hold_to(features, expected, monai_loss, prediction, target)
    assert features.network.layer4[2].bn3.eps == 1.001e-5  # moves the features by less than the tolerance
    # The same weights in torchvision's network: what loading by name alone would give.
    torchvision_keys = torchvision_resnet.state_dict().keys()
    by_name = ReferenceResNet50().eval()
    by_name.load_state_dict({key: value for key, value in keras_resnet.state_dict().items() if key in torchvision_keys})
    assert (by_name(normalised) - expected).abs().max() > 0.1 * expected.max()


def test_the_network_stays_frozen(torchvision_resnet, images, folder) -> None:
    torch.save(torchvision_resnet.state_dict(), folder / "resnet50.pth")
    random_state = torch.get_rng_state()
    loss = build_perceptual_loss(str(folder / "resnet50.pth"))
    assert torch.equal(torch.get_rng_state(), random_state)  # or a run with the term would draw other noise
    loss.train()
    assert not any(module.training for module in loss.features.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    before = {key: tensor.clone() for key, tensor in loss.state_dict().items()}
    prediction, target = (x.clone().requires_grad_() for x in images)
    loss(prediction, target).backward()
    assert target.grad is None
    assert prediction.grad.abs().max() > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in loss.state_dict().items())


# --- the arithmetic where it could break


def test_equal_images_have_no_distance_and_no_nan(torchvision_resnet) -> None:
    images = torch.rand(1, 1, 64, 64).requires_grad_()
    loss = PerceptualLoss(lambda x: torchvision_resnet(x.repeat(1, 3, 1, 1)))(images, images.detach().clone())
    loss.backward()
    assert loss == 0
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_features_that_are_zero_give_a_finite_gradient() -> None:
    """MONAI took the root of a sum that is 0 and added its epsilon after: the gradient of training was NaN."""
    images = torch.zeros(1, 4, 2, 2).requires_grad_()
    target = torch.zeros(1, 4, 2, 2)
    target[..., 0] = 1
    loss = PerceptualLoss(nn.Identity())(images, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)  # unit length against 0 at half of the positions
    assert images.grad.isfinite().all()
    with pytest.raises(ValueError, match="must be equal"):
        PerceptualLoss(nn.Identity())(images, target[:, :1])


def test_none_turns_the_term_off_and_says_so(capsys) -> None:
    assert build_perceptual_loss("none") is None
    assert "WARNING: perceptual.weights = none" in capsys.readouterr().err


# --- foreign files


def shapes_only(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with one number behind each tensor: a file of a few kB."""
    return {key: torch.zeros(()).expand(tensor.shape) for key, tensor in network.state_dict().items()}


def test_other_networks_are_refused_by_name(torchvision_resnet, keras_resnet, tmp_path) -> None:
    small = resnet18(spatial_dims=2, n_input_channels=3, shortcut_type="B", bias_downsample=False)
    whole, path = shapes_only(torchvision_resnet), tmp_path / "weights.pth"
    without_biases = {
        key: value for key, value in shapes_only(keras_resnet).items() if not key.endswith("layer2.0.conv2.bias")
    }
    cases = {
        "tensors missing .*layer1.0.bn3.*of another shape": shapes_only(small),
        r"1 tensors missing \(layer4.2.bn3.running_var\)$": whole | {"layer4.2.bn3.running_var": None},
        r"2 tensors not a ResNet-50's \(layer4.3.conv1.weight, seg.bias\)$": whole
        | {"seg.bias": torch.zeros(1), "layer4.3.conv1.weight": torch.zeros(1)},
        r"1 tensors of another shape \(conv1.weight\)$": whole | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
        r"converted from Keras.*1 tensors missing \(layer2.0.conv2.bias\)$": without_biases,
        "no ResNet-50 of a known layout": {"encoder.weight": torch.zeros(1)},
        "holds no state dict": [torch.zeros(1)],
    }
    for message, content in cases.items():
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if value is not None}
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as error:
            load_resnet50(path)
        assert str(path) in str(error.value)
