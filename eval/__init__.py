"""Runs and compares policies: metrics, statistics over seeds, grids, capacity, plots, reports."""
