"""A manifest row -> pixels and truth, with a status in place of an exception.

In: manifest rows. Out: regions in the same order: pixels (of a picture uint8 H x W x 3, of a scene's window any type
and number of bands) with those that are valid, class maps, or the reason there are none.

Reading order:
    read_config   the options that jobs which read share
    pixels        what is handed on: values, which are valid, the core inside the halo
    packed        the same as a value of an Arrow column, between processes
    scene_window  one window of a raster scene
    regions       fetch, check and decode rows, several at once, under deadlines
"""
