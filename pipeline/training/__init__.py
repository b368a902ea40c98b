"""Labelled regions -> a trained network, on Ray Train fed by Ray Data or in one process of one machine.

In: a manifest with labels. Out: the checkpoints `best` and `last`, the history, TensorBoard files.

Reading order:
    job              the training job
    config           its options, and which of them decide what is trained
    placement        Ray or this process, which device, how many threads
    selection        the rows to train on and to validate with
    scene_sample     bands, scaling, mean and spread, from a sample of the training scenes
    label_scan       one look at every label file before the first step
    samples/         which sample is seen when, and the streams that bring it
    task             what every worker is given
    loop             what every worker does: steps, validation, checkpoints
    state            what a resumed run goes on from
    worker           what surrounds the loop: samples, peers, the driver
    process_worker   the one worker of a machine without Ray
    ray_worker       a worker of Ray Train
    monitor          on Ray: progress to the driver, a request to stop the other way
    validation       the confusion matrix of the validation pictures
    optimization/    losses, schedules, parameter groups, the moving average of the weights
    event_files      TensorBoard
    studies/         many trainings compared with a published study
"""
