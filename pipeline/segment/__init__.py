"""The bulk job: every region of a collection through a network into Parquet, each exactly once.

In: a manifest and a checkpoint. Out: predictions/, statistics/ and a summary of speed.

Reading order:
    job               from a configuration to a finished output
    config            the options, and which of them decide what a mask holds
    fit               whether scenes fit the network, judged on their headers
    predict_options   how a run predicts, chosen once and kept with it
    runner            what a runner is: pending rows in, written files out
    ray_runner        on Ray
    process_runner    on one machine, in processes of its own
    runners           which of the two a run uses
    segmenter         the worker: manifest rows -> result rows
    reading_stage     reading as a stage of its own, before GPUs
    result_rows       predictions -> rows of the table
    quarantine        regions that kill or hang their process
    tuning            batch size and threads, found at the start of a long run
    timings           what predictors spend their time on
    forecast          the dry run
"""
