"""The columns of recorded iterations, shared by the recorder (under vLLM) and the fit."""

COLUMNS = (
    "schedule_ns",  # when schedule() was entered, on the machine's monotonic clock
    "scheduled_ns",  # when it returned
    "done_ns",  # when the iteration's result reached the scheduler, -1 while it has not
    "updated_ns",  # when the scheduler had taken it in
    "prefill_tokens",
    "prefill_seqs",
    "decode_seqs",
    "context_tokens",
    "chunk_context",
    "max_context",
    "running",
    "waiting",
    "preempted",
    "new",
    "used_blocks",
    "label",
)
EVENTS = ("added_ns", "scheduled_row", "first_token_row", "last_row")
