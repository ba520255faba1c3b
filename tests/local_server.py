"""A local HTTP server for tests: serves bytes, and misbehaves on demand."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Serves ``files`` (name -> bytes) on 127.0.0.1 and keeps the names that were asked for in ``requests``.

    truncate : names whose transfer ends after half of the promised bytes
    pause : names whose transfer stops half-way until ``resume`` is set; ``paused`` tells that this point is reached
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.truncate: set[str] = set()
        self.pause: set[str] = set()
        self.paused, self.resume = threading.Event(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                server.requests.append(name)
                if name not in server.files:
                    self.send_error(404)
                    return
                content = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                half = len(content) // 2
                try:
                    self.wfile.write(content[:half])
                    self.wfile.flush()
                    if name in server.truncate:
                        return
                    if name in server.pause:
                        server.paused.set()
                        server.resume.wait(20)
                    self.wfile.write(content[half:])
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self):
        """Close the port; later requests are refused."""
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
