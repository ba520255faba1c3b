"""A local HTTP server for tests: serves bytes, and misbehaves on demand."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Serves ``files`` (name -> bytes) on 127.0.0.1 and keeps the names that were asked for in ``requests``.

    truncate : names whose transfer ends after half of the promised bytes
    truncate_once : the same, for the next transfer only
    pause : names whose transfer stops half-way until ``resume`` is set; ``paused`` tells that this point is reached
    answers : name -> statuses that the next requests get instead of the file
    redirect : name -> address to go to instead
    kinds : name -> Content-Type
    unannounced : names that are sent without their length
    commit : where set, the server is a hub: it tells by HEAD of which commit a file is, and its ETag
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.truncate: set[str] = set()
        self.truncate_once: set[str] = set()
        self.pause: set[str] = set()
        self.answers: dict[str, list[int]] = {}
        self.redirect: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.unannounced: set[str] = set()
        self.commit = ""
        self.headers = []
        self.paused, self.resume = threading.Event(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                server.requests.append(name)
                server.headers.append(dict(self.headers))
                if server.answers.get(name):
                    self.send_error(server.answers[name].pop(0))
                elif name in server.redirect:
                    self.send_response(302)
                    self.send_header("Location", server.redirect[name])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif name not in server.files:
                    self.send_error(404)
                else:
                    self.send_file(name, server.files[name])

            def do_HEAD(self):
                self.do_GET()

            def send_file(self, name, content):
                self.send_response(200)
                if name not in server.unannounced:
                    self.send_header("Content-Length", str(len(content)))
                if server.commit:
                    self.send_header("X-Repo-Commit", server.commit)
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                if name in server.kinds:
                    self.send_header("Content-Type", server.kinds[name])
                self.end_headers()
                if self.command == "HEAD":
                    return
                half = len(content) // 2
                try:
                    self.wfile.write(content[:half])
                    self.wfile.flush()
                    if name in server.truncate | server.truncate_once:
                        server.truncate_once.discard(name)
                        return
                    if name in server.pause:
                        server.paused.set()
                        server.resume.wait(20)
                    self.wfile.write(content[half:])
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self):
        """Close the port; later requests are refused."""
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
