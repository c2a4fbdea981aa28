"""The way from `g2rpo train` to other trainers: records as their data sets, runs as their options.

``rows`` says what a record is in each host's data set, and ``conversion`` writes it; ``keys`` says
what becomes of a key of the configuration, with a table for each host in ``trl`` and ``verl``.
"""
