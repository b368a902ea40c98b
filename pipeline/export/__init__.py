"""Predictions -> maps, polygons and pictures: files that people and other programs open.

In: the predictions of a segment run. Out: COGs, GeoParquet, GeoJSON, PNG or COCO, a file a scene or picture.

Reading order:
    job        from a configuration to a finished output, resumed scene by scene
    config     the options
    scene      the rows of one scene: windows on one grid
    cog        a map of classes: cloud-optimised GeoTIFF, with its STAC item
    polygons   class maps cut into windows -> polygons that know no windows
    vectors    polygons with class and area as GeoParquet or GeoJSON
    pictures   PNGs of class colours, and COCO's JSON
"""
