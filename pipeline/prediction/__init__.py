"""Pixels -> class map, confidence and counts. Knows nothing of Ray.

In: pictures (H x W x B) and a checkpoint. Out: one prediction per picture.

Reading order:
    predictor       a network ready to predict on one device
    forward         a batch of tiles through the network
    device_forward  the same on a GPU, nothing waiting for anything
    tiling          a large picture as overlapping tiles
    stitching       one picture's prediction from its tiles
    argmax          logits -> class, confidence and counts per class
    resizing        a picture to a network's fixed size, logits back to the picture's
    views           test-time augmentation
    engines         torch, compiled code or ONNX Runtime
    folding         batch norm folded into convolutions
    packing         convolutions with packed weights (oneDNN)
    import_config   options of importing a network
    import_model    the import job: a network trained elsewhere -> a checkpoint
"""
