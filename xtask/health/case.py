#!/usr/bin/env python3
"""Plays one healthy case in its own network namespace while a recorder looks on.

    unshare --net --mount xtask/health/case.py CASE RECORDER [ARGUMENT]...

Started by `cargo xtask health`. The servers listen first, then RECORDER is started, then clients come;
when RECORDER ends, all processes are ended. What each case is for: docs/health.md.
"""

import asyncio
import atexit
import ctypes
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

PORT = 8080
HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PR_SET_PDEATHSIG = 1


def end_with_parent():
    """The kernel ends this process when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def child(function, *arguments):
    """Runs a function in a process of its own."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()
        random.seed(os.getpid())
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid


def listen(port=PORT, backlog=128, *options):
    """A listening socket; options are triples for setsockopt."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in options:
        listener.setsockopt(*option)
    listener.bind((HOST, port))
    listener.listen(backlog)
    return listener


def ticks(seconds):
    """Comes by at a fixed rate; who is late catches up."""
    due = time.monotonic()
    while True:
        time.sleep(max(0, due - time.monotonic()))
        yield
        due += seconds


# --- servers ---


def one_by_one(listener, work, pause=lambda: 0):
    """Answers one connection after the other, `work` seconds for each."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            time.sleep(work)
            connection.sendall(b"done")
        time.sleep(pause())


def echo(listener, until=lambda n_open, idle: False):
    """Keeps any number of connections and says again what it hears."""
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections, busy = {}, time.monotonic()
    while not until(len(connections), time.monotonic() - busy):
        for fd, _ in epoll.poll(0.5, 512):
            busy = time.monotonic()
            if fd == listener.fileno():
                while (connection := accept(listener)) is not None:
                    connections[connection.fileno()] = connection
                    epoll.register(connection, select.EPOLLIN)
                continue
            try:
                said = connections[fd].recv(4096)
                connections[fd].send(said)
            except OSError:
                said = b""
            if not said:
                connections.pop(fd).close()
    return epoll, connections


def accept(listener):
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


# --- clients ---


async def visit(wait=0.0, hold=0.0):
    """Connects, waits, asks, reads, holds the connection, and closes. Comes again when refused."""
    for _ in range(20):
        try:
            reader, writer = await asyncio.open_connection(HOST, PORT)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.2)
    else:
        return
    try:
        await asyncio.sleep(wait)
        writer.write(b"hello")
        await reader.read(64)
        await asyncio.sleep(hold)
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass


async def visits(per_second, wait=lambda: 0.0, hold=lambda: 0.0, seconds=float("inf")):
    """Visits at a rate, each when its time comes."""
    begun, n, running = time.monotonic(), 0, set()
    while time.monotonic() - begun < seconds:
        await asyncio.sleep(max(0, begun + n / per_second - time.monotonic()))
        n += 1
        task = asyncio.create_task(visit(wait(), hold()))
        running.add(task)
        task.add_done_callback(running.discard)


async def crowd(n):
    """Visits that come at once."""
    await asyncio.gather(*(visit() for _ in range(n)))


def come(clients):
    """Starts clients, given as a function of a coroutine, in a process of their own."""
    child(lambda: asyncio.run(clients()))


# --- cases: each listens, and gives what to start when the recorder runs ---


def idle():
    """Two servers to which nobody comes."""
    for port in (22, 5432):
        child(one_by_one, listen(port), 0)
    return lambda: None


def nginx():
    """nginx at 5,000 requests a second: most on connections of 20, 500 on connections of their own."""
    holder = tempfile.TemporaryDirectory(prefix="backlogd-health-")
    atexit.register(holder.cleanup)
    folder = holder.name
    with open(f"{folder}/nginx.conf", "w") as config:
        config.write(
            f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ access_log off; keepalive_requests 20; server {{ listen {HOST}:{PORT};\n"
            "location / { return 200 'hello'; } location /status { stub_status; } } }\n"
        )
    os.chmod(folder, 0o755)
    command = ["nginx", "-p", folder, "-c", f"{folder}/nginx.conf"]
    subprocess.Popen(command, preexec_fn=end_with_parent)
    while not os.path.exists(f"{folder}/pid"):
        time.sleep(0.05)

    def load(per_second, request):
        connection, at_once = None, 5
        for _ in ticks(at_once / per_second):
            for _ in range(at_once):
                connection = connection or socket.create_connection((HOST, PORT))
                connection.sendall(request)
                if b"Connection: close" in connection.recv(4096):
                    connection.recv(4096)
                    connection.close()
                    connection = None

    def count():
        while True:
            begun, before = time.monotonic(), requests()
            time.sleep(60)
            rate = (requests() - before) / (time.monotonic() - begun)
            print(f"nginx: {rate:.0f} requests/s", flush=True)

    def requests():
        status = urllib.request.urlopen(f"http://{HOST}:{PORT}/status").read().split()
        return int(status[9])

    def clients():
        for _ in range(4):
            child(load, 1125, REQUEST)
        child(load, 500, LAST_REQUEST)
        child(count)

    return clients


def prefork():
    """Eight processes in accept(2) on one socket; 40 visits a second, and crowds of 60."""
    listener = listen()
    for _ in range(8):
        child(one_by_one, listener, 0.02)

    async def crowds():
        while True:
            await asyncio.sleep(random.uniform(1, 5))
            await crowd(60)

    async def clients():
        await asyncio.gather(visits(40), crowds())

    return lambda: come(clients)


def deferred():
    """TCP_DEFER_ACCEPT, and clients that wait 0 to 2 s before they speak."""
    child(echo, listen(PORT, 128, (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)))
    return lambda: come(lambda: visits(20, wait=lambda: random.uniform(0, 2)))


def connections():
    """10,000 connections that say little; a few come and go."""
    child(echo, listen(PORT, 1024))

    def clients():
        kept = []
        for _, _ in zip(range(10_000), ticks(1 / 200)):
            kept.append(socket.create_connection((HOST, PORT)))
        for _ in ticks(0.2):
            for connection in random.sample(kept, 4):
                connection.sendall(b"ping")
                connection.recv(64)
            which = random.randrange(len(kept))
            kept[which].close()
            kept[which] = socket.create_connection((HOST, PORT))

    return lambda: child(clients)


def pool():
    """A client that opens 1,000 connections after a minute and keeps them all."""
    child(echo, listen())

    def clients():
        time.sleep(60)
        kept = []
        for _, _ in zip(range(1000), ticks(1 / 100)):
            kept.append(socket.create_connection((HOST, PORT)))
        for _ in ticks(0.02):
            connection = random.choice(kept)
            connection.sendall(b"select 1")
            connection.recv(64)

    return lambda: child(clients)


def activation():
    """A parent that listens and never accepts; its service starts with the first connection, in half a
    second to one and a half, and exits when it was idle for 5 s."""

    def service(listener):
        time.sleep(random.uniform(0.5, 1.5))
        echo(listener, until=lambda n_open, idle: n_open == 0 and 5 < idle)

    def parent(listener):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            poll.poll()
            os.waitpid(child(service, listener), 0)

    async def clients():
        while True:
            await visits(5, seconds=random.uniform(0.5, 3))
            await asyncio.sleep(random.uniform(6, 40))

    child(parent, listen())
    return lambda: come(clients)


def burst():
    """Five quiet minutes, then one of twenty times as many visits, half of them at once: it fills more
    than half of the queue, again and again."""
    child(one_by_one, listen(PORT, 256), 0.003)

    async def clients():
        while True:
            await visits(10, seconds=300)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                await asyncio.gather(crowd(160), visits(40, seconds=1))

    return lambda: come(clients)


def pause():
    """A server that stands still for 3 s of nearly 30, each time another part of a second after the
    recorder's sample; its queue takes all who come meanwhile."""
    begun = time.monotonic()
    turn = 0

    def still():
        nonlocal turn
        if int((time.monotonic() - begun) / 29.7) == turn:
            return 0
        turn += 1
        return 3

    child(one_by_one, listen(PORT, 256), 0.005, still)
    return lambda: come(lambda: visits(20))


def deploy():
    """Every five minutes another process takes over the port, and the old one ends its connections
    within 20 s: by SO_REUSEPORT, but the third time by closing and binding within a second."""
    shared = (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def server(told):
        listener = listen(PORT, 128, shared)
        epoll, left = echo(listener, until=lambda n_open, idle: select.select([told], [], [], 0)[0])
        # what came in meanwhile is served; then nobody listens here
        while (connection := accept(listener)) is not None:
            left[connection.fileno()] = connection
            epoll.register(connection, select.EPOLLIN)
        listener.close()
        end = time.monotonic() + 20
        while time.monotonic() < end and left:
            for fd, _ in epoll.poll(0.5):
                if fd not in left:
                    continue
                said = left[fd].recv(4096)
                if said:
                    left[fd].send(said)
                else:
                    left.pop(fd).close()

    def start():
        told, tell = os.pipe()
        return child(server, told), tell

    def deployments():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _, tell = start()
        n = 0
        while True:
            time.sleep(300)
            n += 1
            if n == 3:
                os.write(tell, b"end")
                time.sleep(0.7)
                _, tell = start()
            else:
                before = tell
                _, tell = start()
                time.sleep(2)
                os.write(before, b"end")

    child(deployments)
    return lambda: come(lambda: visits(20, hold=lambda: random.uniform(0, 15)))


CASES = {
    case.__name__: case
    for case in (
        idle, nginx, prefork, deferred, connections, pool, activation, burst, pause, deploy,
    )
}  # fmt: skip


def end_all():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)


def main(cases):
    """Plays the one that is asked for until the recorder ends."""
    case, *recorder = sys.argv[1:]
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    own = os.getpid()
    # a child may get it before it is in `child`
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1) if os.getpid() == own else os._exit(1))
    end_with_parent()
    atexit.register(end_all)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # where the recorder finds the tracepoints of system calls
    subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    start_clients = cases[case]()
    time.sleep(1)
    recording = subprocess.Popen(recorder, preexec_fn=end_with_parent)
    time.sleep(3)
    start_clients()
    sys.exit(recording.wait())


if __name__ == "__main__":
    main(CASES)
