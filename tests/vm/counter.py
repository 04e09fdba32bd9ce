# Counts what it is asked by POST, in memory alone: counter.py PORT. For a scenario, and for tests of the daemon.
import http.server
import sys


class Counter(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Counter.count += 1
        self.do_GET()

    def do_GET(self):
        text = str(Counter.count).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Counter).serve_forever()
