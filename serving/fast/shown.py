"""What an agent is shown of the choice that is due: columns of candidates, a mask, the situation.

The numbers are those of ``envs.columns``: a feature or a difference of two, its symlog where the
column says so, shifted and scaled.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.exact import LARGEST, LN2_HIGH, LN2_LOW, ROOT_HALF
from lengthwise.serving.fast.batch import computed_of, generated_of
from lengthwise.serving.fast.compiler.jit import bits_of, float_of, hot, kernel, node_of
from lengthwise.serving.fast.flags import EVENTS
from lengthwise.serving.fast.scores import fill_replica
from lengthwise.serving.fast.state import ADMIT, KNOWN, NONE, ROUTE
from lengthwise.serving.fast.tables import copy_features, write_features

FAR = 1e6  # bound of a normalised number; nothing that a score should tell apart lies beyond
SITUATION = 4  # numbers of the situation as a whole


@kernel
def symlog(x: float) -> float:
    """``exact.symlog``, operation by operation."""
    size = -x if x < 0.0 else x
    if size > LARGEST:
        size = LARGEST
    y = 1.0 + size
    lost = size - (y - 1.0) if size < 1.0 else 1.0 - (y - size)  # by rounding y
    word = bits_of(y)
    power = ((word >> 52) & 2047) - 1022
    m, k = float_of(word - (power << 52)), np.float64(power)
    if m < ROOT_HALF:
        m += m
        k -= 1.0
    s = (m - 1.0) / (m + 1.0)
    u = s * s
    r = u / 21.0 + 0.05263157894736842
    r = r * u + 0.058823529411764705
    r = r * u + 0.06666666666666667
    r = r * u + 0.07692307692307693
    r = r * u + 0.09090909090909091
    r = r * u + 0.1111111111111111
    r = r * u + 0.14285714285714285
    r = r * u + 0.2
    r = r * u + 0.3333333333333333
    log = k * LN2_HIGH + (2.0 * s + (2.0 * s * u * r + (k * LN2_LOW + lost / y)))
    return -log if x < 0.0 else log


# Features


@kernel
def glance_at(S: Any, r: int) -> None:
    """The replica whose choice is due, as its scores would see it now."""
    S.replica[r].summed_last = NONE  # whoever gave way is still in the sum
    write_features(S.glance[0], S.gym.reads, "replica", last=S.replica[r].iteration - 1)


@kernel
def fill_request(
    S: Any, r: int, row: int, id: int, generated: int, computed: int, preemptions: int
) -> None:
    """A request of that replica: ``scores.fill``."""
    write_features(S.rows[row], S.gym.reads, "request", "pair")
    copy_features(S.rows[row], S.glance[0], S.gym.reads, "replica")


@hot
def fill_waiting(S: Any, r: int, row: int, id: int) -> None:
    """The same of one that waits."""
    fill_request(S, r, row, id, S.generated[id], 0, S.preemptions[id])


@hot
def fill_running(S: Any, r: int, row: int, s: int) -> None:
    """The same of one in the batch."""
    id = S.slot[s].id
    fill_request(S, r, row, id, generated_of(S, r, s), computed_of(S, r, s), S.preemptions[id])


# The observation


@hot
def number_at(S: Any, row: int, place: int, is_float: int) -> float:
    """A feature of a row that was filled."""
    word = S.words[row, place]
    return float_of(word) if is_float else np.float64(word)


@kernel
def show_row(S: Any, k: int, row: int, slot: int, id: int) -> None:
    """Writes the columns of a row that was filled to a candidate's place in the observation.

    Those that stay what they were at a request's arrival were made before (``kept``); ``id`` is
    NONE for a node.
    """
    at = slot * S.gym.columns
    for c in range(S.gym.columns):
        column = S.column[c]
        if id != NONE and column.kept != NONE:
            S.flat[k, at + c] = S.kept[column.kept, id]
            continue
        x = number_at(S, row, column.plus, column.plus_float)
        if column.minus != NONE:
            x -= number_at(S, row, column.minus, column.minus_float)
        if column.log:
            x = symlog(x)
        x = (x - column.shift) / column.scale
        S.flat[k, at + c] = min(max(x, -FAR), FAR)
    mark_action(S, k, slot, 1)


@hot
def mark_action(S: Any, k: int, slot: int, legal: int) -> None:
    """Says in both masks whether an action has a candidate."""
    S.mask[k, slot] = legal
    S.flat[k, S.gym.slots * S.gym.columns + slot] = np.float64(legal)


@kernel
def clear_row(S: Any, k: int, slot: int) -> None:
    """No candidate stands there."""
    at = slot * S.gym.columns
    for c in range(S.gym.columns):
        S.flat[k, at + c] = 0.0
    mark_action(S, k, slot, 0)


@hot
def situation(S: Any, k: int, place: int, x: float) -> None:
    """Writes one of the numbers of the situation as a whole."""
    S.flat[k, S.gym.slots * (S.gym.columns + 1) + place] = min(max(x, -FAR), FAR)


@kernel
def show_nothing(S: Any, k: int) -> None:
    """The observation at an episode's end: nobody is there."""
    for slot in range(S.gym.slots):
        clear_row(S, k, slot)
    for place in range(SITUATION):
        situation(S, k, place, 0.0)
    S.env[k].present = 0


@hot
def show_count(S: Any, k: int, count: int) -> None:
    """``count`` candidates are shown from the first slot on; the slots after them are cleared."""
    for slot in range(count, S.env[k].present):
        clear_row(S, k, slot)
    S.env[k].present = count


@kernel
def show_nodes(S: Any, k: int) -> None:
    """The nodes that a request may be sent to, and holding it if that is an action."""
    run, id = S.run, S.run.due_request
    queues = 0
    for r in range(run.replicas):
        if EVENTS and S.replica[r].down == KNOWN:
            clear_row(S, k, r)
            continue
        fill_replica(S, r, id, r, S.gym.reads)
        queues += S.rows[r].waiting_requests > 0
        show_row(S, k, r, r, NONE)
    show_count(S, k, run.replicas)
    if S.gym.hold:
        mark_action(S, k, S.gym.slots - 1, 1)  # its row is all zeros
    situation(S, k, 0, np.float64(queues) / run.replicas)
    situation(S, k, 1, symlog(np.float64(run.in_system) / run.replicas))
    situation(S, k, 2, symlog(np.float64(S.prompt[id])) - 6.0)
    answer = S.predicted[id] if len(S.predicted) else 0.0
    situation(S, k, 3, symlog(answer) - 5.0)


@hot
def shortness(S: Any, id: int, by: int) -> float:
    """What a waiting request is short by: its predicted answer, its prompt, or both together."""
    prompt = np.float64(S.prompt[id])
    predicted = S.predicted[id] if len(S.predicted) else 0.0
    if by == 0:
        return predicted
    return prompt if by == 1 else predicted + prompt


@kernel
def bring_forward(S: Any, start: int, count: int, end: int, by: int) -> None:
    """Moves the ``count`` shortest of ``candidate[start:end]`` to its beginning, shortest first and
    the earlier of equals; the others keep their order behind them."""
    kept = 0
    for place in range(start, end):
        id = S.candidate[place]
        key = shortness(S, id, by)
        if kept == count and key >= S.stash[count - 1].score:
            continue
        to = kept if kept < count else count - 1
        while to > 0 and key < S.stash[to - 1].score:
            S.stash[to].score, S.stash[to].id = S.stash[to - 1].score, S.stash[to - 1].id
            to -= 1
        S.stash[to].score, S.stash[to].id = key, id
        kept = min(kept + 1, count)
    longest = S.stash[count - 1].score
    spare = 0  # of those as long as the longest that is moved, how many are not
    for place in range(start, end):
        spare += shortness(S, S.candidate[place], by) == longest
    for place in range(count):
        spare -= S.stash[place].score == longest
    to, place = end - 1, end - 1
    while place >= start:
        id = S.candidate[place]
        key = shortness(S, id, by)
        stays = key > longest
        if key == longest and spare > 0:
            spare -= 1
            stays = True
        if stays:
            S.candidate[to] = id
            to -= 1
        place -= 1
    for place in range(count):
        S.candidate[start + place] = S.stash[place].id


@kernel
def spread(S: Any, k: int) -> None:
    """Of a queue longer than ``slots``, who can be chosen: those at its head, and of the others
    those with the shortest predicted answer, the shortest prompt, and the least of both, a quarter
    each."""
    slots, waiting = S.gym.slots, S.env[k].waiting
    quarter = slots // 4
    if waiting <= slots or quarter == 0:
        return
    start = slots - 3 * quarter
    for by in range(3):
        bring_forward(S, start, quarter, waiting, by)
        start += quarter


@kernel
def show_queue(S: Any, k: int) -> None:
    """The waiting requests that may be admitted next: those after who was picked already."""
    env, r, width = S.env[k], S.run.due_node, S.gym.columns
    count, new = min(env.waiting - env.picked, S.gym.slots), 0
    if env.again > 0:  # nothing has changed but that one is gone: those behind it move up
        new = env.present - 1
        for at in range((env.again - 1) * width, new * width):
            S.flat[k, at] = S.flat[k, at + width]
    for place in range(new, count):
        id = S.candidate[env.picked + place]
        fill_waiting(S, r, place, id)
        show_row(S, k, place, place, id)
    show_count(S, k, count)
    situation(S, k, 0, symlog(np.float64(env.waiting - env.picked)))
    situation(S, k, 1, symlog(np.float64(S.run.in_system)))
    situation(S, k, 2, np.float64(env.running + env.picked) / node_of(S, r).max_seqs)
    situation(S, k, 3, env.kv)


@kernel
def show_batch(S: Any, k: int) -> None:
    """The running requests that may give way, and last the waiting one that finds no place."""
    env, r = S.env[k], S.run.due_node
    last = S.gym.slots - 1
    for place in range(env.running):
        fill_running(S, r, place, S.candidate[place])
        show_row(S, k, place, place, S.slot[S.candidate[place]].id)
    fill_waiting(S, r, last, env.asked)
    show_row(S, k, last, last, env.asked)
    show_count(S, k, env.running)
    situation(S, k, 0, symlog(np.float64(env.waiting - env.walked)))
    situation(S, k, 1, symlog(np.float64(S.run.in_system)))
    situation(S, k, 2, np.float64(S.replica[r].running) / node_of(S, r).max_seqs)
    situation(S, k, 3, env.kv)


@kernel
def show(S: Any, k: int) -> None:
    """Writes the observation of the choice that is due."""
    if S.gym.kind == ROUTE:
        show_nodes(S, k)
    elif S.gym.kind == ADMIT:
        show_queue(S, k)
    else:
        show_batch(S, k)
