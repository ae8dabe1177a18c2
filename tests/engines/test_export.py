"""ScopeNet as a ``torch.export`` program."""

import pytest
import torch

from ga_scope.engines.torchvision.export import SingleImage, export_detector

from .conftest import built, randomise


@pytest.mark.parametrize("rescore", ["mean", "distribution"])
def test_whole_model_exports_with_dynamic_size(rescore):
    """Backbone, head, top-k, decoding and NMS in one program, for images of any size, with many detections or none."""
    opts = ["MODEL.SCOPENET.PRIOR_PROB", "0.3", "MODEL.SCOPENET.RESCORE", rescore]
    model = randomise(built("scopenet", opts)).eval()
    program = export_detector(model).module()
    counts = set()
    for size in ((3, 160, 160), (3, 192, 384), (3, 448, 224), (3, 832, 1344)):
        image = torch.rand(size) * 255
        with torch.no_grad():
            expected = SingleImage(model)(image)
        found = program(image)
        counts.add(len(found[0]))
        for a, b in zip(found, expected):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert max(counts) > 10


def test_a_program_without_detections():
    model = built("scopenet", ["MODEL.SCOPENET.SCORE_THRESH_TEST", "0.999"]).eval()
    boxes, scores, classes = export_detector(model).module()(torch.zeros(3, 192, 192))
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)
