"""What training reads: which sample is seen when, and the streams that bring it.

In: tables of manifest rows. Out: Ray Data streams of augmented samples in the order of the plan, and of validation
pictures.

Reading order:
    plan           which picture is the n-th sample of a run
    augmentation   one random view of a picture and its truth
    streams        the plan as a Ray Data stream; the validation pictures
"""
