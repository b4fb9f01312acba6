"""The smallest recipe that still is a federation."""

TINY = """
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 3
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = 2
[evaluate]
pixel_baseline = false
"""
