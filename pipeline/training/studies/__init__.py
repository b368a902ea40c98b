"""A published study repeated: its variants trained, its table beside ours.

Reading order:
    study        a study as a YAML file
    job          the sweep job
    trials       many trainings by Ray Tune
    comparison   the two tables
"""
