"""What training reads: which sample is seen when, and the streams that bring it.

In: tables of manifest rows. Out: batches of augmented samples in the order of the plan, and validation pictures.

Reading order:
    plan             which picture is the n-th sample of a run
    augmentation     one random view of a picture and its truth
    loader           samples by number -> arrays
    validation       validation pictures, read whole
    process_stream   on one machine: read ahead by processes of the job's own
    ray_streams      on Ray: the same as Ray Data streams
"""
