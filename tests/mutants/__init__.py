"""Plausible mistakes, planted one at a time, and whether the tests nearest to them notice."""
