"""`tinyllm runs`: list, show and verify runs, and trace their lineage, from the run directories alone and without torch.

One file per command: `listing` (list and show), `verify` and `lineage`. They share `find` (which run is meant), `record` (one run
directory, read defensively), `files` (what is wrong with single files) and `hashes`.
"""
