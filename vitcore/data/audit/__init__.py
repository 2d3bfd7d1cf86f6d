"""Copies: exact and near, inside a dataset and between datasets."""
