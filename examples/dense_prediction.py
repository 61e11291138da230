"""python examples/dense_prediction.py segmentation

Teaches DeepLabV3+ (segmentation_models_pytorch) or Faster R-CNN (torchvision), each on this network, to find cups,
cutlery and plates in photos.

The photos are those of examples/kitchen_photos.py with an outline of the object in each, drawn by hand. A training
image is a part of one of nine photos, with the cut-out object of another one pasted onto it by its alpha channel. Four
other photos, which are not changed, show what was learned. The backbone stays as it is. It prints as its last line:

    Mean IoU on 4 photos: 0.903; background everywhere: 0.208.

`python examples/dense_prediction.py detection`:

    Boxes found (IoU >= 0.5, right class): 2 of 4. Mean loss: 1.34 in the first quarter of the steps, 0.46 in the last.
"""

import random
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from cyclopts import App
from PIL import Image, ImageDraw
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from port_a_keras_model import download

import xception_hub

CLASSES = ('background', 'cup', 'cutlery', 'plate')
# Photo -> class, and the outline's points: x and y in hundredths of width and height. Two points are an ellipse's box.
Outlines = dict[str, tuple[str, str]]
# fmt: off
TRAIN: Outlines = {
    '0000': ('cup', '24 24 28 22 52 21 78 22 83 24 82 29 76 72 70 76 53 77 36 76 29 72 28 61 16 60 8 51 5 40 6 32 '
                    '13 28 24 27 24 32 16 32 10 38 12 46 18 55 28 57'),
    '0403': ('cup', '11 17 13 13 23 10 39 8 54 9 68 11 76 15 78 19 83 21 88 24 89 27 87 31 78 34 68 37 66 38 62 '
                    '43 58 47 49 49 34 48 26 46 21 39 16 29 12 21'),
    '0001': ('cutlery', '41 23 45 27 48 34 47 38 43 42 43 48 44 58 47 84 37 84 38 58 39 48 38 42 34 38 33 34 36 27'),
    '0013': ('cutlery', '16 19 19 18 21 22 31 33 43 42 47 44 65 59 89 79 87 82 83 83 78 78 59 63 43 47 40 45 26 35 18 '
                        '28'),
    '0199': ('cutlery', '45 4 48 5 53 14 56 27 55 32 51 44 50 48 49 58 48 81 47 92 39 92 39 90 41 71 43 50 44 44 44 '
                        '12'),
    '0412': ('cutlery', '40 7 50 7 50 29 51 36 48 41 48 50 49 54 52 58 52 95 48 98 43 97 41 85 41 58 42 51 43 47 43 '
                        '41 39 36 39 29 40 19'),
    '0002': ('plate', '11 22 95 55'),
    '0192': ('plate', '24 22 78 67'),
    '0385': ('plate', '12 19 84 69'),
}
TEST: Outlines = {
    '0009': ('cup', '14 18 14 14 18 11 39 8 49 8 70 9 82 14 82 17 89 17 96 18 98 23 97 30 89 36 75 40 68 46 61 51 '
                    '49 51 31 50 25 43 17 27'),
    '0422': ('cup', '33 19 35 18 52 18 58 19 61 22 60 27 65 26 69 27 71 32 69 40 65 46 58 54 57 52 63 45 68 39 69 '
                    '32 68 29 65 28 60 30 58 51 57 60 49 62 40 61 38 59 36 39'),
    '0207': ('cutlery', '48 26 53 27 57 33 57 38 55 43 51 48 51 64 52 75 54 87 52 92 49 93 45 92 43 87 45 75 47 64 47 '
                        '48 43 44 40 39 40 32 43 27'),
    '0026': ('plate', '15 27 78 75'),
}
# fmt: on
MAPS = {'entry_flow_0': 128, 'entry_flow_1': 256, 'middle_flow_7': 728, 'exit_flow_1': 2048}  # name -> channels
FPN_WIDTH = 128  # channels
FEW = dict(rpn_post_nms_top_n_train=200, rpn_post_nms_top_n_test=100, box_batch_size_per_image=64)  # boxes, for a CPU

app = App(help=__doc__, version_flags=[])


def cut_outs(outlines: Outlines, size: int) -> list[tuple[Image.Image, int]]:
    """Each photo [size, size] with the object's alpha channel, and the object's class."""
    files = {photo.stem: photo for photo in download().photos}
    found = []
    for name, (class_name, text) in outlines.items():
        photo = xception_hub.open_image(files[name])
        alpha = Image.new('L', photo.size)
        values = [int(value) / 100 for value in text.split()]
        points = [(x * photo.width, y * photo.height) for x, y in zip(values[::2], values[1::2])]
        draw = ImageDraw.Draw(alpha)
        (draw.ellipse if len(points) == 2 else draw.polygon)(points, fill=255)
        photo.putalpha(alpha)
        found.append((photo.resize((size, size)), CLASSES.index(class_name)))
    return found


def scene(objects: list[tuple[Image.Image, int]], size: int) -> tuple[Tensor, Tensor]:
    """A random part of a photo with the object of another one on it: pixels [3, H, W] in [-1, 1], classes [H, W]."""
    (under, under_class), (over, over_class) = random.sample(objects, 2)
    left, top = random.randint(0, size // 4), random.randint(0, size // 4)
    under = under.resize((size, size), box=(left, top, left + size * 3 // 4, top + size * 3 // 4))
    if random.random() < 0.5:
        under, over = (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (under, over))
    side = random.randint(size // 2, size)
    over = over.rotate(random.uniform(-45, 45), Image.Resampling.BILINEAR).resize((side, side))
    corner = (random.randint(-size // 4, size - side // 2), random.randint(-size // 4, size - side // 2))
    image, classes = labelled(under, under_class)
    image.paste(over, corner, over.getchannel('A'))
    classes.paste(over_class, corner, over.getchannel('A').point(lambda alpha: 255 * (alpha > 127)))
    return tensors(image, classes)


def labelled(photo: Image.Image, number: int) -> tuple[Image.Image, Image.Image]:
    """A cut-out's photo and the class of each pixel."""
    return photo.convert('RGB'), photo.getchannel('A').point(lambda alpha: number * (alpha > 127))


def tensors(image: Image.Image, classes: Image.Image) -> tuple[Tensor, Tensor]:
    """Pixels [3, H, W] in [-1, 1] of an image, and classes [H, W] of its pixels."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3)
    mask = torch.frombuffer(bytearray(classes.tobytes()), dtype=torch.uint8).view(*image.size[::-1])
    return pixels.permute(2, 0, 1) / 127.5 - 1, mask.long()


def frozen(backbone: nn.Module, model: nn.Module) -> list[nn.Parameter]:
    """Puts all but the backbone into training mode, and returns the parameters that learn."""
    model.train()
    backbone.requires_grad_(False).eval()
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def mean_iou(predicted: Tensor, expected: Tensor) -> float:
    """Mean over the classes of the intersection over the union of all pixels, from classes [B, H, W] in 0..3."""
    ious = [
        ((predicted == number) & (expected == number)).sum() / ((predicted == number) | (expected == number)).sum()
        for number in range(len(CLASSES))
    ]
    return torch.stack(ious).mean().item()


@app.command
def segmentation(*, size: int = 128, batch_size: int = 4, steps: int = 80) -> None:
    """Trains DeepLabV3+.

    Args:
        size: Height and width of the images in pixels, a multiple of 32.
        batch_size: Images of a step.
        steps: Number of steps.
    """
    import segmentation_models_pytorch as smp

    random.seed(0)
    torch.manual_seed(0)
    model: Any = smp.DeepLabV3Plus('tu-xception_paper_pyramid', encoder_weights=True, classes=len(CLASSES))
    optimizer = torch.optim.AdamW(frozen(model.encoder, model), 2e-3)
    objects = cut_outs(TRAIN, size)
    for step in range(steps):
        images, masks = map(torch.stack, zip(*(scene(objects, size) for _ in range(batch_size))))
        loss = nn.functional.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f'step {step:3}: loss {loss.item():.3f}', flush=True)
    images, masks = map(torch.stack, zip(*(tensors(*labelled(*found)) for found in cut_outs(TEST, size))))
    predicted = model.predict(images).argmax(dim=1)
    trivial = mean_iou(torch.zeros_like(masks), masks)
    print(f'Mean IoU on {len(TEST)} photos: {mean_iou(predicted, masks):.3f}; background everywhere: {trivial:.3f}.')


def faster_rcnn(size: int) -> Any:
    """torchvision's detector on the maps of four stages."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    features = timm.create_model('xception_paper', pretrained=True, features_only=True)  # FPN resizes its maps
    return_layers = {name: str(number) for number, name in enumerate(MAPS)}
    backbone = BackboneWithFPN(features, return_layers, list(MAPS.values()), FPN_WIDTH)
    anchors = AnchorGenerator(tuple((size * scale // 32,) for scale in (2, 4, 8, 16, 24)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(
        backbone, len(CLASSES), min_size=size, max_size=size, rpn_anchor_generator=anchors, **FEW,
        image_mean=[0.0] * 3, image_std=[1.0] * 3,  # the images are in [-1, 1] already
    )  # fmt: skip


def boxes_of(classes: Tensor) -> dict[str, Tensor]:
    """torchvision's target from classes [H, W]: a box around the pixels of each class, [N, 4] in pixels."""
    from torchvision.ops import masks_to_boxes

    numbers = classes.unique()[1:]
    return dict(boxes=masks_to_boxes(classes == numbers[:, None, None]) + torch.tensor([0, 0, 1, 1]), labels=numbers)


@torch.inference_mode()
def is_found(model: Any, image: Tensor, classes: Tensor) -> bool:
    """Whether the box of the highest score in an image [3, H, W] is that of the object in its classes [H, W]."""
    from torchvision.ops import box_iou

    best, expected = model([image])[0], boxes_of(classes)
    ious = box_iou(best['boxes'][:1], expected['boxes'])
    return bool((ious >= 0.5).any() and best['labels'][0] == expected['labels'][0])


@app.command
def detection(*, size: int = 128, batch_size: int = 2, steps: int = 60) -> None:
    """Trains Faster R-CNN.

    Args:
        size: Height and width of the images in pixels.
        batch_size: Images of a step.
        steps: Number of steps, at least 4.
    """
    random.seed(0)
    torch.manual_seed(0)
    model = faster_rcnn(size)
    optimizer = torch.optim.AdamW(frozen(model.backbone.body, model), 3e-4)
    objects = cut_outs(TRAIN, size)
    losses = []
    for step in range(steps):
        images, masks = zip(*(scene(objects, size) for _ in range(batch_size)))
        loss = sum(model(images, [boxes_of(mask) for mask in masks]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f'step {step:3}: loss {loss.item():.3f}', flush=True)
    model.eval()
    found = sum(is_found(model, *tensors(*labelled(*photo))) for photo in cut_outs(TEST, size))
    quarter = steps // 4
    print(f'Boxes found (IoU >= 0.5, right class): {found} of {len(TEST)}. ', end='')
    print(f'Mean loss: {sum(losses[:quarter]) / quarter:.2f} in the first quarter of the steps, ', end='')
    print(f'{sum(losses[-quarter:]) / quarter:.2f} in the last.')


if __name__ == '__main__':
    app()
