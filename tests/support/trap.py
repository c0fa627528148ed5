"""A listener on loopback that nothing may ever connect to, and addresses that lead there by detours."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Trap:
    """Counts the connections to a port of 127.0.0.1 and ::1, and answers each in HTTP, as a secret would."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.caught = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            self.caught += 1
            with connection:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 6\r\n\r\nsecret"
                )


@contextmanager
def trap() -> Iterator[Trap]:
    """A trap on a free port, in both families where the machine has both."""
    with socket.create_server(("127.0.0.1", 0)) as v4:
        found = Trap(v4.getsockname()[1])
        listeners = [v4]
        if socket.has_dualstack_ipv6():
            listeners.append(socket.create_server(("::1", found.port), family=socket.AF_INET6))
        threads = [threading.Thread(target=found.serve, args=[each]) for each in listeners]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            for each in listeners:
                each.shutdown(socket.SHUT_RDWR)
                each.close()
            for thread in threads:
                thread.join(5)


HOSTS = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "0.0.0.0",
    "0",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ip6-localhost",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "\uff11\uff12\uff17.0.0.1",
    "\u2460\u2461\u2466.0.0.1",
    "127\u30020\u30020\u30021",
    "loc\u00adalhost",
    "127.0.0.1%20",
    "127.0.0.1%00.example.com",
]


def urls(port: int) -> list[str]:
    """Every form of a URL that should lead nowhere."""
    plain = [f"{scheme}://{host}:{port}/x.png" for host in HOSTS for scheme in ("http", "https")]
    tricks = [
        f"http://example.com@127.0.0.1:{port}/",
        f"http://user:password@127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}\\@example.com/",
        f"http://example.com\\@127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}#@example.com/",
        f"http://127.0.0.1:{port}?@example.com/",
        f"http:/127.0.0.1:{port}/",
        f"http:127.0.0.1:{port}/",
        f"http:///127.0.0.1:{port}/",
        f"//127.0.0.1:{port}/",
        f"127.0.0.1:{port}",
        f"\thttp://127.0.0.1:{port}/",
        f"ht\ntp://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}/\r\nx: y",
        f"HTTP://127.0.0.1:{port}/",
        f"ftp://127.0.0.1:{port}/",
        f"gopher://127.0.0.1:{port}/_GET",
        f"ws://127.0.0.1:{port}/",
        f"unix://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "http://",
        "http://:80/",
        f"http://[::1:{port}/",
        f"jar:http://127.0.0.1:{port}/!/",
    ]
    return plain + tricks
