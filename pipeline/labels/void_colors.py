"""The colours that mean "no class" in the colour label files of known data sets, by the name of the label set."""

from pipeline.labels.colors import Color

VOID_COLORS: dict[str, tuple[Color, ...]] = {
    "camvid": ((0, 0, 0),),
    "voc": ((224, 224, 192),),  # the drawn border
    # cityscapesScripts' table: black is five labels (unlabeled to static), the others are not evaluated. Two more share
    # the colour of a class (polegroup: pole; license plate: car): such files do not keep them apart.
    "cityscapes": (
        (0, 0, 0),
        (111, 74, 0),  # dynamic
        (81, 0, 81),  # ground
        (250, 170, 160),  # parking
        (230, 150, 140),  # rail track
        (180, 165, 180),  # guard rail
        (150, 100, 100),  # bridge
        (150, 120, 90),  # tunnel
        (0, 0, 90),  # caravan
        (0, 0, 110),  # trailer
    ),
}
