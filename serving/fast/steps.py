"""One step of many environments: answers are taken, runs go on to where the next choice is due.

Each environment has a run of its own, whose address table is named in its row. An episode that
ends is followed by one of those that were prepared for its environment: what a run changes is
copied from how it was at the beginning, and everything else stays where it lies.
"""

# compiled from its text; to mypy every number that an array yields is Any
# mypy: disable-error-code="no-any-return, return-value, call-arg"

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.picoseconds import PS
from lengthwise.serving.fast.cluster import run_until
from lengthwise.serving.fast.compiler.jit import as_state, hot, kernel, node_of, put_word, word_at
from lengthwise.serving.fast.replica import nobody_must_yield
from lengthwise.serving.fast.routing import first_open
from lengthwise.serving.fast.shown import glance_at, show, show_nothing, spread
from lengthwise.serving.fast.state import (
    ADMIT,
    BEGIN,
    CHOICE,
    DISABLED,
    DONE,
    DRAW,
    EMPTY,
    FIRST,
    GOING,
    HALF,
    IDLE,
    NO_ACTION,
    NO_RUN,
    NONE,
    OVER,
    PREEMPT,
    ROUTE,
    SAME_STEP,
    STOP,
)
from lengthwise.serving.fast.stops import list_candidates
from lengthwise.serving.fast.yields import begin_walk, end_walk, walk_queue, yield_place
from lengthwise.serving.system import HOLD

# To the next choice


@kernel
def to_next_route(table: int) -> int:
    """Goes on until a request can be sent to one of several nodes; a code."""
    S: Any = as_state(table)
    code = run_until(table)
    while code == STOP and S.run.open < 2 and not S.gym.hold:
        S.run.answer = first_open(S)
        code = run_until(table)
    return code


@kernel
def to_next_admission(table: int, k: int) -> int:
    """Goes on until one of several waiting requests can be admitted; a code.

    Who was picked stands first in ``candidate``, in order, and then the others, in the queue's (or,
    of a long one, as ``spread`` has it).
    """
    S: Any = as_state(table)
    run, env = S.run, S.env[k]
    if env.picked > 0:
        if env.waiting - env.picked > 1 and env.seats > env.picked and env.tokens > 0:
            return STOP
        run.chosen = env.picked
        env.picked = 0
    code = run_until(table)
    while code == STOP and run.candidates < 2:
        code = run_until(table)
    if code != STOP:
        return code
    r = run.due_node
    code = list_candidates(S)
    if code != DONE:
        return code
    glance_at(S, r)
    node, rep = node_of(S, r), S.replica[r]
    env.waiting, env.running, env.picked = run.candidates, rep.running, 0
    env.seats, env.tokens = node.max_seqs - rep.running, node.max_tokens - rep.running
    env.kv = (node.blocks - rep.free) / node.blocks
    env.again = 0
    if S.gym.show:
        spread(S, k)
    return STOP


@kernel
def to_next_yield(table: int, k: int) -> int:
    """Goes on until a waiting request finds no place and a running one may give way; a code."""
    S: Any = as_state(table)
    env = S.env[k]
    if env.walking:
        code = walk_queue(S, k)
        if code != DONE:
            return code
    while True:
        code = run_until(table)
        if code != STOP:
            return code
        r = S.run.due_node
        if nobody_must_yield(S, r):
            continue
        code = begin_walk(S, k, r)
        if code == DONE:
            code = walk_queue(S, k)
        if code != DONE:
            return code


@hot
def to_next_choice(S: Any, k: int) -> int:
    """Goes on to the next choice: STOP; DONE at the end; or what went wrong."""
    table = S.env[k].table
    if S.gym.kind == ROUTE:
        return to_next_route(table)
    if S.gym.kind == ADMIT:
        return to_next_admission(table, k)
    return to_next_yield(table, k)


# Actions


@hot
def pick(S: Any, k: int, choice: int) -> None:
    """The waiting request at this place is admitted next."""
    env = S.env[k]
    place = env.picked + choice
    id = S.candidate[place]
    while place > env.picked:
        S.candidate[place] = S.candidate[place - 1]
        place -= 1
    S.candidate[place] = id
    env.picked += 1
    env.again = choice + 1
    env.tokens -= S.prompt[id]


@kernel
def take_action(S: Any, k: int) -> None:
    """Carries out an action; one without a candidate costs, and stands for the first candidate."""
    run, gym, env = S.run, S.gym, S.env[k]
    choice = S.action[k]
    S.reward[k] = 0.0
    if not S.mask[k, choice]:
        choice = 0 if gym.kind == ADMIT else gym.slots - 1
        if gym.kind == ROUTE:
            choice = first_open(S)
        env.illegal += 1
        S.reward[k] = -gym.illegal_penalty
    if gym.kind == ADMIT:
        pick(S, k, choice)
    elif gym.kind == PREEMPT:
        if choice < gym.slots - 1:
            yield_place(S, k, S.candidate[choice])
        else:
            end_walk(S, k, run.due_node)
    elif gym.hold and choice == gym.slots - 1:
        run.answer = HOLD
        S.asked[run.due_request] = run.now + gym.hold_ps
    else:
        run.answer = choice


# Episodes


@kernel
def copy_words(to: int, origin: int, count: int) -> None:
    """Copies ``count`` words of 64 bits."""
    for i in range(count):
        put_word(to + 8 * i, word_at(origin + 8 * i))


@kernel
def begin_episode(G: Any, k: int) -> int:
    """Begins the next episode that was prepared for an environment; DRAW if there is none."""
    env, bank = G.env[k], G.gym.bank
    place = k * bank + env.turn % bank
    new = G.place[place]
    if new.plays == 0:
        return DRAW
    new.plays -= 1
    copy_words(new.block_at, new.pristine_at, new.words)
    copy_words(new.run_at, new.run_pristine_at, new.run_words)
    env.turn += 1
    env.table, env.place, env.variant, env.scale = new.table, place, new.variant, new.scale
    env.illegal = env.paid_high = env.paid_low = env.picked = env.walking = 0
    env.stage = FIRST
    return DONE


@hot
def pay(S: Any, k: int) -> None:
    """Takes the time that requests spent in the system since the last choice off the reward."""
    run, env = S.run, S.env[k]
    grown = ((run.request_high - env.paid_high) << HALF) + run.request_low - env.paid_low
    env.paid_high, env.paid_low = run.request_high, run.request_low
    S.reward[k] -= np.float64(grown) / PS / env.scale


@kernel
def keep_totals(S: Any, k: int) -> None:
    """Leaves the run's totals to a cost that is a Python function."""
    run, env = S.run, S.env[k]
    env.last_scale = env.scale
    env.last_now, env.last_in_system = run.now, run.in_system
    env.last_request_high, env.last_request_low = run.request_high, run.request_low
    env.last_waiting_high, env.last_waiting_low = run.waiting_high, run.waiting_low
    env.last_finished, env.last_generated = run.finished, run.generated
    env.last_preempted, env.last_recomputed = run.preempted, run.recomputed
    env.last_lost_rows, env.last_lost_tokens = run.lost_rows, run.lost_tokens


@kernel
def end_episode(S: Any, k: int) -> None:
    """An episode is over: its reward and its statistics."""
    run, env = S.run, S.env[k]
    S.ended[k] = 1
    env.last_place = env.place
    S.final_now_s[k] = np.float64(run.now) / PS
    S.final_illegal[k] = env.illegal
    spent = (run.request_high << HALF) + run.request_low
    S.mean_latency_s[k] = np.float64(spent) / PS / run.requests


# Steps


@kernel
def step_one(G: Any, k: int) -> int:
    """One environment takes its action, or begins an episode, and goes on; a code."""
    gym, env = G.gym, G.env[k]
    if env.stage == CHOICE:
        G.ended[k] = 0
        take_action(as_state(env.table), k)
        env.stage = GOING
    elif env.stage == OVER:
        G.ended[k] = 0
        G.reward[k] = 0.0
        env.stage = BEGIN
    while True:
        if env.stage == BEGIN:
            code = begin_episode(G, k)
            if code != DONE:
                return code
        if env.variant != gym.variant:  # its run takes other machine code
            return DONE
        S: Any = as_state(env.table)
        code = to_next_choice(S, k)
        if code != STOP and code != DONE:
            return code
        G.now_s[k] = np.float64(S.run.now) / PS
        G.illegal[k] = env.illegal
        if env.stage == GOING:
            if gym.keep:
                keep_totals(S, k)
            else:
                pay(S, k)
        elif code == DONE:
            env.stage = BEGIN
            return EMPTY
        if code == STOP:
            show(S, k)
            env.stage = CHOICE
            break
        end_episode(S, k)
        env.stage = OVER
        if gym.mode != SAME_STEP:
            show_nothing(S, k)
            break
        env.stage = BEGIN
    env.pending = 0
    gym.left -= 1
    return DONE


@kernel
def check_actions(G: Any) -> int:
    """Whether all environments can take their actions; a code, with the first that can't."""
    gym = G.gym
    for k in range(gym.envs):
        gym.at = k
        stage = G.env[k].stage
        if stage == IDLE or (stage == OVER and gym.mode == DISABLED):
            return NO_RUN
        if stage == CHOICE and (G.action[k] < 0 or G.action[k] >= gym.slots):
            return NO_ACTION
    for k in range(gym.envs):
        G.env[k].pending = 1
    gym.left = gym.envs
    gym.at = 0
    return DONE


@kernel
def step_many(table: int) -> int:
    """All environments that have yet to take this step do so, as far as this code is theirs; a
    code, with the environment ``at`` that it is about. Call it again to go on."""
    G: Any = as_state(table)
    gym = G.gym
    if gym.at == NONE:
        code = check_actions(G)
        if code != DONE:
            return code
    while gym.at < gym.envs:
        env = G.env[gym.at]
        if env.pending and (env.stage == BEGIN or env.stage == OVER or env.variant == gym.variant):
            code = step_one(G, gym.at)
            if code != DONE:
                return code
        gym.at += 1
    return DONE


@kernel
def show_again(table: int) -> int:
    """Writes the observation of the environment ``at`` once more, all rows of features too."""
    G: Any = as_state(table)
    env = G.env[G.gym.at]
    env.again = 0
    show(as_state(env.table), G.gym.at)
    return DONE
