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
        said = request.get("messages") or [{"content": request.get("prompt", request.get("input"))}]
        prompt = said[-1]["content"]
        tokens = request.get("max_tokens") or request["max_output_tokens"]
        if prompt == "die":
            os._exit(1)
        if request.get("stream"):
            return self._stream(tokens, self.path.rpartition("/")[2])
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

    def _stream(self, tokens: int, kind: str) -> None:
        """``kind``: the last word of the path: completions (of chats too) or responses."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for n in range(tokens):
            time.sleep(float(sys.argv[1]))
            if kind == "responses":
                chunk = {"type": "response.output_text.delta", "item_id": "x", "output_index": 0,
                         "content_index": 0, "sequence_number": n, "delta": "a "}  # fmt: skip
            else:
                chat = "chat" in self.path
                said = {"delta": {"role": "assistant", "content": "a "}} if chat else {"text": "a "}
                choice = {"index": 0, **said,
                          "finish_reason": "length" if n == tokens - 1 else None}  # fmt: skip
                name = "chat.completion.chunk" if chat else "text_completion"
                chunk = {"id": "x", "object": name, "created": 0, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if kind == "responses":
            usage = {"input_tokens": 1, "output_tokens": tokens, "total_tokens": tokens + 1}
            response = {"id": "x", "object": "response", "created_at": 0, "model": "m",
                        "output": [], "parallel_tool_calls": False, "tool_choice": "auto",
                        "tools": [], "status": "completed", "usage": usage}  # fmt: skip
            chunk = {"type": "response.completed", "sequence_number": tokens, "response": response}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        else:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_: object) -> None: ...  # a client that hung up


server = Server(("127.0.0.1", 0), Model)
print(server.server_port, flush=True)
server.serve_forever()
