"""What every job stands on: its command line, its place on Ray, its output folder, and what a person sees of it.

In: a command line. Out: a typed configuration, a joined (or local) Ray, an output folder held by one live driver.

Reading order:
    cli              from a command line to one call and an exit code
    options          the dataclass of a job from YAML and flags
    output_config    the options that jobs with an output folder share
    run              an output folder as a run: fingerprints, resuming, overwriting
    lease            at most one live driver an output folder
    cluster          joining Ray, or starting a local one
    progress         rates and time left of long work
    process          memory and signals of a process of ours
"""
