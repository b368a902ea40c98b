"""The predictor: against the plain definition, by itself or in company, whole or in tiles."""

from __future__ import annotations

import dataclasses
import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_network import SPEC, Local, assert_same, pictures, predict
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.models import build_model
from pipeline.prediction.predictor import Predictor
from pipeline.prediction.tiling import cut_side
from pipeline.prediction.views import Views

# ---- what it says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (201, 33), (97, 131)])
def test_it_is_the_plain_definition(shape):
    network = Local().eval()
    (picture,) = pictures(shape)
    (found,) = predict(Predictor(network, SPEC, low_confidence=0.4), [picture])
    with torch.no_grad():
        x = (torch.from_numpy(picture) / 255 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
        p = network(x.permute(2, 0, 1)[None]).softmax(1)[0].numpy()
    np.testing.assert_array_equal(found.class_map, p.argmax(0))
    assert found.class_map.dtype == np.uint8
    np.testing.assert_array_equal(found.class_pixels, np.bincount(p.argmax(0).ravel(), minlength=3))
    np.testing.assert_allclose(found.mean_confidence, p.max(0).mean(), rtol=1e-5)
    for k in range(3):
        won = p.argmax(0) == k
        expected = p.max(0)[won].mean() if won.any() else np.nan
        np.testing.assert_allclose(found.class_confidence[k], expected, rtol=1e-5)
    np.testing.assert_allclose(found.low_confidence_share, (p.max(0) < 0.4).mean(), atol=1e-4)


def test_channel_order_and_size_multiple():
    """BGR networks are fed BGR; padding to a multiple is cut off again."""

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2] % 32 == x.shape[-1] % 32 == 0
            return x  # the classes are the bands

    spec = dataclasses.replace(SPEC, channel_order="bgr", size_multiple=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    (picture,) = pictures((45, 67))
    (found,) = predict(Predictor(Picky(), spec), [picture])
    np.testing.assert_array_equal(found.class_map, picture[..., ::-1].argmax(2))


def test_above_254_classes_a_mask_is_uint16():
    names = tuple(f"c{i}" for i in range(300))
    spec = dataclasses.replace(SPEC, label_set=LabelSet("many", names, tuple((0, 0, 0) for _ in names)))
    network = Local(300).eval()
    with torch.no_grad():
        network[-1].bias[280] += 100
    (found,) = predict(Predictor(network, spec), pictures((20, 30)))
    assert found.class_map.dtype == np.uint16 and (found.class_map == 280).all()


def test_the_lightweight_network_on_odd_sizes():
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, model="lightweight")
    predictor = Predictor(build_model("lightweight", num_classes=3).eval(), spec)
    given = pictures((97, 131), (64, 64))
    together = predict(predictor, given)
    assert [p.class_map.shape for p in together] == [(97, 131), (64, 64)]
    assert_same(predict(predictor, given[:1])[0], together[0])


def test_views_are_averaged_and_confidence_is_kept_on_request():
    model = Local().eval()
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    plain = Predictor(model, SPEC, device="cpu").predict([pixels])[0]
    seen = Predictor(model, SPEC, device="cpu", flip=True, scales=(1.0, 0.5), keep_confidence=True)
    found, mirrored = seen.predict([pixels, np.ascontiguousarray(pixels[:, ::-1])])
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(
        SPEC.std
    )[:, None, None]
    with torch.no_grad():
        p = Views(model, flip=True, scales=(1.0, 0.5))(x).softmax(1)[0]
    confidence, class_map = p.max(0)
    assert (found.class_map == class_map.numpy()).mean() > 0.999
    np.testing.assert_allclose(found.confidence / 255, confidence.numpy(), atol=0.6 / 255)
    assert found.confidence.dtype == np.uint8 and plain.confidence is None
    assert not np.array_equal(found.class_map, plain.class_map)
    assert (mirrored.class_map[:, ::-1] == found.class_map).mean() > 0.999


@pytest.mark.parametrize("options", [{}, {"tile_px": 160, "overlap_px": 64}])
def test_probabilities_are_the_softmax_of_every_class(options):
    """Whole or in tiles; the winner's is the confidence."""
    (picture,) = pictures((201, 333))
    network = Local().eval()
    predictor = Predictor(network, SPEC, keep_confidence=True, keep_probabilities=True, **options)
    (found,) = predict(predictor, [picture])
    with torch.no_grad():
        x = (torch.from_numpy(picture) / 255 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
        p = network(x.permute(2, 0, 1)[None]).softmax(1)[0].numpy()
    assert found.probabilities.shape == (3, 201, 333) and found.probabilities.dtype == np.uint8
    np.testing.assert_allclose(found.probabilities / 255, p, atol=0.6 / 255)
    np.testing.assert_array_equal(found.probabilities.max(0), found.confidence)


def test_probabilities_of_channels_of_one_class_add_up():
    """Channel 1 stands for no class of the label set, 0 and 2 for the same."""
    network = Local().eval()
    (picture,) = pictures((40, 50))
    (plain,) = predict(Predictor(network, SPEC, keep_probabilities=True), [picture])
    spec = dataclasses.replace(SPEC, class_map=(2, None, 2))
    (found,) = predict(Predictor(network, spec, keep_probabilities=True), [picture])
    both = plain.probabilities[0].astype(int) + plain.probabilities[2]
    assert not found.probabilities[:2].any() and np.abs(found.probabilities[2] - both).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_px": 150, "overlap_px": 100}, "tile_px=150, overlap_px=100; expected tile_px - overlap_px >= 64"),
        ({"overlap_px": -1}, "overlap_px=-1"),
        ({"precision": "int8"}, "found int8; expected auto, float32"),
        ({"batch_size": 0}, "batch size out of range"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Predictor(Local().eval(), SPEC, **options)


# ---- the same picture, the same mask -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(5)),
    take=st.integers(1, 5),
    batch_size=st.integers(1, 4),
)
def test_company_changes_nothing(order, take, batch_size):
    given = pictures((40, 50), (40, 50), (50, 40), (40, 50), (200, 350))
    predictor = Predictor(Local().eval(), SPEC, batch_size=batch_size, tile_px=160, overlap_px=64)
    chosen = list(order)[:take]
    together = predict(predictor, [given[i] for i in chosen])
    for i, prediction in zip(chosen, together, strict=True):
        assert_same(prediction, predict(predictor, [given[i]])[0])


@pytest.mark.parametrize("shape", [(161, 100), (333, 517), (100, 640), (1000, 170)])
def test_tiles_of_a_local_network_are_the_whole_picture(shape):
    (picture,) = pictures(shape)
    (whole,) = predict(Predictor(Local().eval(), SPEC), [picture])
    (tiled,) = predict(Predictor(Local().eval(), SPEC, tile_px=160, overlap_px=64, batch_size=3), [picture])
    np.testing.assert_array_equal(tiled.class_map, whole.class_map)
    np.testing.assert_array_equal(tiled.class_pixels, whole.class_pixels)
    assert tiled.mean_confidence == pytest.approx(whole.mean_confidence)
    assert tiled.low_confidence_share == pytest.approx(whole.low_confidence_share)


@given(
    side=st.integers(1, 100_000),
    tile=st.integers(64, 2048),
    overlap=st.integers(0, 512),
)
def test_cuts_cover_a_side_once(side, tile, overlap):
    overlap = min(overlap, tile - 64)
    cuts = cut_side(side, tile, overlap, 32)
    assert [i for cut in cuts for i in (cut.keep.start, cut.keep.stop)][1:-1:2] == [c.keep.start for c in cuts[1:]]
    assert cuts[0].keep.start == 0 and cuts[-1].keep.stop == cuts[-1].read.stop == side
    lengths = {cut.read.stop - cut.read.start for cut in cuts}
    assert len(lengths) == 1 and lengths.pop() <= tile
    for before, after in zip(cuts, cuts[1:], strict=False):
        assert before.read.stop - after.read.start >= overlap and after.read.start % 32 == 0
        assert before.keep.stop == after.keep.start
        assert before.read.stop - before.keep.stop >= overlap // 2 <= after.keep.start - after.read.start


# ---- what it keeps -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc to keep freed memory")
def test_the_next_large_picture_needs_no_fresh_memory() -> None:
    """In a process of its own, as a predictor is: what other tests left of the heap here has holes everywhere."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        fresh_pages = process.submit(fresh_pages_of_one_more, (1024, 2048)).result()
    assert fresh_pages < 1024 * 2048 * 3 * 4 / resource.getpagesize()  # those of its floats alone, without activations


def fresh_pages_of_one_more(size: tuple[int, int]) -> int:
    """Pages that the kernel had to provide for a picture after eight of its size; the heap settles in two to five."""
    predictor = Predictor(Local(), SPEC, device="cpu", tile_px=4096)
    given = pictures(size)
    for _ in range(8):
        predict(predictor, given)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    predict(predictor, given)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
