"""An OpenAI-compatible server on loopback that serves one request at a time, slowly.

    python fake_model.py SECONDS_PER_TOKEN

Prints its port. A request of n ``max_tokens`` takes n tokens' time, and a prompt "die" its life;
streams do not wait for each other.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENGINE = threading.Lock()


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, tokens = request["messages"][-1]["content"], request["max_tokens"]
        if prompt == "die":
            os._exit(1)
        if request.get("stream"):
            return self._stream(tokens)
        with ENGINE:
            time.sleep(tokens * float(sys.argv[1]))
        choice = {"index": 0, "finish_reason": "length",
                  "message": {"role": "assistant", "content": prompt}}  # fmt: skip
        body = json.dumps({
            "id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, tokens: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for n in range(tokens):
            time.sleep(float(sys.argv[1]))
            choice = {"index": 0, "delta": {"role": "assistant", "content": "a "},
                      "finish_reason": "length" if n == tokens - 1 else None}  # fmt: skip
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m",
                     "choices": [choice]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_: object) -> None: ...  # a client that hung up


server = Server(("127.0.0.1", 0), Model)
print(server.server_port, flush=True)
server.serve_forever()
