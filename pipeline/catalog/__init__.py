"""What there is to work on: a source of any kind becomes a manifest, one row per region.

In: a folder, prefix, glob, table or S3 Inventory, of pictures or of scenes. Out: the manifest, a folder of Parquet
parts in path order, and the subset of its rows that a run does.

Reading order:
    schema            the columns of every table of the project
    entry             one picture, and what its path says: kind and split
    collection        the pictures at a source, in path order
    label_files       the label file that belongs to a picture
    table_columns     what the columns of a table of pictures mean, by their usual names
    picture_table     a table of pictures as a source
    inventory         an S3 Inventory as a source
    raster_windows    a raster scene as the windows of a grid
    scene_config      the options of how scenes are listed
    area_of_interest  the part of the earth that is asked for
    stac              STAC items as scenes
    manifest          the manifest read: rows, counts, fingerprint, region keys
    manifest_writer   a source -> a manifest, streamed
    subset            the rows of a manifest that a run does: a split, a sample, the first N
    job               the manifest job, and the manifest that every other job works off
"""
