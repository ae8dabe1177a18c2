"""Every kind of detector on a backbone of five convolutions: exported in seconds, and with something to say."""

import torch
from torch import nn

from ga_scope.engines.torchvision.model import RCNN, OneStage, ProposalGenerator
from ga_scope.modeling.box_coding import BoxCoder
from ga_scope.modeling.guided_anchoring import (
    AnchorShapes,
    FixedShapes,
    GuidedAnchorHead,
    GuidedAnchorRetinaHead,
    GuidedAnchorRetinaNet,
    GuidedAnchorRPN,
    LocationSelection,
)
from ga_scope.modeling.retinanet import RetinaNet, RetinaNetHead
from ga_scope.modeling.roi_heads import BoxHead, BoxPredictor, FastRCNNHeads, Pooler
from ga_scope.modeling.scope import DistributionQuality, ScopeBins, ScopeDetector, ScopeHead, ScopeTargets

STRIDES = (8, 16, 32)
NAMES = ("p3", "p4", "p5")
CHANNELS = 8
CLASSES = 3
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)
SELECTION = LocationSelection(0.4, 30)


class Backbone(nn.Module):
    """Images to maps of strides 8, 16 and 32."""

    size_divisibility = 32
    out_channels = CHANNELS

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 8, stride=8)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.down = nn.ModuleList([nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1) for _ in STRIDES[1:]])

    def forward(self, images):
        levels = [self.norm(self.stem(images))]
        for conv in self.down:
            levels.append(conv(levels[-1].relu()))
        return dict(zip(NAMES, levels))


def guided_rpn(selection, **more):
    head = GuidedAnchorHead(CHANNELS, conv=True, offset_groups=2, **more.pop("head", {}))
    shapes = more.pop("shapes", None) or AnchorShapes(4.0, std=0.3)
    limits = {"pre_nms_topk": (50, 50), "post_nms_topk": (40, 40), "nms_thresh": 0.6}
    return GuidedAnchorRPN(head, STRIDES, shapes=shapes, selection=selection, **(limits | more))


def proposal_network(selection=SELECTION, **more):
    return RCNN(Backbone(), ProposalGenerator(NAMES, guided_rpn(selection, **more)), None, NAMES, MEAN, STD)


def faster_rcnn(selection=SELECTION):
    heads = FastRCNNHeads(
        Pooler(STRIDES, 5, 2),
        BoxHead(CHANNELS * 25, 16, 2),
        BoxPredictor(16, CLASSES),
        num_classes=CLASSES,
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=0.2,
        detections_per_image=50,
    )
    return RCNN(Backbone(), ProposalGenerator(NAMES, guided_rpn(selection)), heads, NAMES, MEAN, STD)


def guided_retinanet(selection=SELECTION):
    head = GuidedAnchorRetinaHead(CHANNELS, CLASSES, num_convs=2, offset_groups=2)
    shapes = AnchorShapes(4.0, std=0.3)
    detector = GuidedAnchorRetinaNet(head, STRIDES, shapes=shapes, selection=selection, score_thresh=0.3)
    return OneStage(Backbone(), NAMES, detector, MEAN, STD)


def retinanet():
    shapes = FixedShapes.of([(24, 32), (48, 64), (96, 128)], [(0.5, 1.0, 2.0)] * 3)
    head = RetinaNetHead(CHANNELS, CLASSES, 6, num_convs=2)
    return OneStage(Backbone(), NAMES, RetinaNet(head, STRIDES, shapes, score_thresh=0.6), MEAN, STD)


def scopenet(norm="", **more):
    quality = DistributionQuality(5) if more.pop("quality", False) else None
    head = ScopeHead(CHANNELS, CLASSES, ScopeBins(5), convs=2, norm=norm)
    limits = {"score_thresh": 0.5, "topk": 60}
    detector = ScopeDetector(head, STRIDES, targets=ScopeTargets((64, 128)), quality=quality, **(limits | more))
    return OneStage(Backbone(), NAMES, detector, MEAN, STD)


def awake(model):
    """Weights at which every part has something to say; statistics of the norms that are no identity."""
    for name, value in model.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and "log_anchors" not in name:
            fan_in = value[0].numel() if value.dim() > 1 else 4
            value.normal_(std=1.2 * fan_in**-0.5)
    return model.eval()


MODELS = {
    "GA-RPN": proposal_network,
    "GA-RPN without a budget": lambda: proposal_network(LocationSelection(0.4)),
    "GA-RPN of fixed shapes": lambda: proposal_network(
        LocationSelection(0.4),
        shapes=FixedShapes.of([(16,), (32,), (64,)], [(0.5, 1.0)] * 3),
        head={"offsets": "none", "anchors_per_location": 2, "shape_columns": 0},
    ),
    "GA-RPN of unguided offsets": lambda: proposal_network(head={"offsets": "features"}),
    "GA-Faster R-CNN": faster_rcnn,
    "GA-RetinaNet": guided_retinanet,
    "GA-RetinaNet without a budget": lambda: guided_retinanet(LocationSelection(0.4)),
    "RetinaNet": retinanet,
    "ScopeNet": scopenet,
    "ScopeNet with a quality network": lambda: scopenet(quality=True),
}


def batch(images, height, width):
    """Images (N, 3, H, W), the smaller of them padded with rubbish, and their sizes."""
    sizes = torch.tensor([[height - 7 * n % height // 2, width - 5 * n] for n in range(images)])
    return 255 * torch.rand(images, 3, height, width), sizes
