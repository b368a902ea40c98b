"""Class maps as bytes: each format gives back what was put in, and what is shown has the classes' colours."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from local_network import LABELS, pictures
from PIL import Image
from pycocotools import mask as coco

from pipeline.labels import IGNORE, LabelSet, load_label_set
from pipeline.tables import masks


@given(
    class_map=st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 9)))
    )
)
def test_masks_are_what_they_were(class_map):
    for one in (class_map, class_map.T, np.asfortranarray(class_map)):
        for mask_format in masks.MASK_FORMATS:
            data = masks.encode_mask(one, mask_format)
            found = masks.decode_mask(data, *one.shape, str(one.dtype), mask_format)
            np.testing.assert_array_equal(found, one)
            assert found.dtype == one.dtype


@given(
    class_map=st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1, 7, IGNORE]))
    )
)
def test_run_lengths_are_cocos_own(class_map):
    annotations = json.loads(masks.encode_mask(np.repeat(class_map, 40, axis=0), "rle"))  # runs beyond one character
    assert {annotation["category_id"] for annotation in annotations} == set(class_map.ravel().tolist()) - {IGNORE}
    for annotation in annotations:
        inside = np.repeat(class_map == annotation["category_id"], 40, axis=0)
        theirs = coco.encode(np.asfortranarray(inside, dtype=np.uint8))
        assert annotation["segmentation"]["counts"] == theirs["counts"].decode()
        assert annotation["segmentation"]["size"] == theirs["size"]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="12 bytes is no 3 x 5 of uint8"):
        masks.decode_mask(bytes(12), 3, 5)
    for mask_format in ("png", "rle"):
        with pytest.raises(ValueError, match="is no 3 x 5"):
            masks.decode_mask(masks.encode_mask(np.zeros((3, 4), np.uint8), mask_format), 3, 5, "uint8", mask_format)


def test_a_png_keeps_the_class_ids_and_shows_the_colours():
    camvid = load_label_set("camvid")
    class_map = np.array([[0, 5, 10], [IGNORE, 3, 3]], dtype=np.uint8)
    for colored in (True, False):
        picture = Image.open(io.BytesIO(masks.to_png(class_map, camvid, colored)))
        np.testing.assert_array_equal(np.array(picture), class_map)
    shown = np.array(Image.open(io.BytesIO(masks.to_png(class_map, camvid))).convert("RGB"))
    np.testing.assert_array_equal(shown, masks.colorize(class_map, camvid))
    assert tuple(shown[0, 1]) == camvid.colors[5] and tuple(shown[1, 0]) == (0, 0, 0)


def test_a_png_of_many_classes():
    many = LabelSet("many", tuple(f"c{i}" for i in range(300)), tuple((i // 2, 0, 0) for i in range(300)))
    class_map = np.array([[299, 65535]], dtype=np.uint16)
    plain = Image.open(io.BytesIO(masks.to_png(class_map, many, colored=False)))
    np.testing.assert_array_equal(np.array(plain), class_map)
    shown = np.array(Image.open(io.BytesIO(masks.to_png(class_map, many))))
    np.testing.assert_array_equal(shown, [[[149, 0, 0], [0, 0, 0]]])


def test_an_overlay_leaves_what_was_not_predicted():
    (picture,) = pictures((1, 2))
    shown = masks.overlay(picture, np.array([[1, IGNORE]], dtype=np.uint8), LABELS, alpha=1.0)
    assert tuple(shown[0, 0]) == (0, 255, 0)
    np.testing.assert_array_equal(shown[0, 1], picture[0, 1])
    np.testing.assert_array_equal(masks.overlay(picture, np.zeros((1, 2), np.uint8), LABELS, alpha=0.0), picture)
