"""FCFS written as a score, so that it takes the plugin's whole path."""

from typing import Any


def arrival(arrival_s: Any) -> Any:
    return arrival_s
