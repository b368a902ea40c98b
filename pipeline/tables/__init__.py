"""Rows -> exactly-once Parquet, and back.

In: Arrow tables of results. Out: files published once whatever dies, class maps and frames read back, statistics.

Reading order:
    masks              class maps <-> bytes, and class maps as pictures
    rle                COCO's run-length encoding
    prediction_table   which files hold committed rows; reading rows back
    sink               attempts, publishing, the audit
    carrier            one file of rows against another manifest
    increment          rows of unchanged pictures carried to a new manifest
    statistics         sums over the whole set, its folders and groups
    readers            pandas, Arrow and torch data sets of predictions
"""
