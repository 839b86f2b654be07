"""Stands in for the predictor's process, and misbehaves as its first argument says.

Predicts twice the prompt's length, within a half of that. "raises" fails for prompts of 13 tokens,
"hangs" stops answering after the first prompt, "dies" exits at the first prompt,
"babbles" answers what is no length, "abstains" says that it does not know,
"repeats" says the session's last answer,
"half-line" never finishes saying that it is ready, and "half-frame" its first answer.
"""

import array
import json
import math
import struct
import sys
import time

how = sys.argv[1]
out, pipe = sys.stdout.buffer, sys.stdin.buffer
if how == "refuses":
    out.write(b'{"error": "no such folder"}\n')
    sys.exit()
if how == "half-line":
    out.write(b'{"needs": ')
    out.flush()
    time.sleep(3600)
out.write(b'{"needs": []}\n')
out.flush()
answered = 0
while len(frame := pipe.read(24)) == 24:
    sequence, length, known = struct.unpack("<qqq", frame)
    tokens = array.array("i", pipe.read(4 * length))
    context = json.loads(pipe.read(known) or b"{}")
    if how == "dies":
        sys.exit(1)
    if how == "hangs" and answered:
        time.sleep(3600)
    said = 2.0 * len(tokens)
    if how == "repeats":
        said = context.get("previous_tokens", said)
    if how == "babbles":
        said = 0.0
    if how == "abstains":
        said = -said
    if how == "raises" and len(tokens) == 13:
        said = math.nan
    answer = struct.pack("<qddd", sequence, said, 0.5 * abs(said), 1.5 * abs(said))
    out.write(answer[:9] if how == "half-frame" else answer)
    out.flush()
    answered += 1
