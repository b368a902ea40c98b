"""Predictions beside truth -> confusion matrices -> metrics -> the page a person reads.

In: a segment run's output and labels. Out: metrics.json, tables, one row per picture, report.html.

Reading order:
    job              the evaluate job
    config           its options
    predictions      a segment run's rows in units of work
    label_index      which label file belongs to which region
    scoring          one unit: rows of predictions beside their labels
    process_runner   all units, by processes of one machine
    ray_runner       all units, on Ray
    accumulator      sums over scored pictures: matrices, groups, the worst
    results          metrics as JSON and tables; what the page shows
    report           the page
    examples         one picture of it: truth, prediction, what is wrong
    charts           its drawings
"""
