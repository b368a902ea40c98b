"""Labelled regions -> a trained network, on Ray Train fed by Ray Data.

In: a manifest with labels. Out: the checkpoints `best` and `last`, the history, TensorBoard files.

Reading order:
    job            the training job
    config         its options, and which of them decide what is trained
    selection      the rows to train on and to validate with
    label_scan     one look at every label file before the first step
    samples/       which sample is seen when; the streams made from that; augmentation
    task           what a worker is given, and what a checkpoint keeps
    loop           what each training worker runs
    losses         cross-entropy, Dice and their relatives
    schedules      the learning rate over a run
    optimizer      parameter groups and precision
    ema            the moving average of the weights
    validation     the confusion matrix of the validation rows
    monitor        progress from the workers to the driver, a request to stop the other way
    event_files    TensorBoard
    studies/       many trainings compared with a published study
"""
