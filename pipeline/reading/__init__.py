"""A manifest row -> pixels and truth, with a status in place of an exception.

In: manifest rows. Out: regions in the same order: pixels (uint8, H x W x 3), class maps, or the reason there are none.

Reading order:
    read_config   the options that jobs which read share
    regions       fetch, check and decode rows, several at once, under deadlines
"""
