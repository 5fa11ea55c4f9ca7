#!/usr/bin/env python3
"""Plays one slow incident in its own network namespace while a recorder looks on.

    unshare --net --mount xtask/health/incident.py INCIDENT RECORDER [ARGUMENT]...

Started by `cargo xtask incidents`, as case.py is by `cargo xtask health`. What each is for: docs/incidents.md.
"""

import asyncio
import errno
import os
import random
import resource
import select
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
import case  # noqa: E402

# from linux/tcp.h: a socket in repair mode is closed without a word to its peer
TCP_REPAIR = 19
NO_LINGER = struct.pack("ii", 1, 0)


def serve(listener, step=lambda: None, lost=None):
    """Says again what it hears. Connections that were reset go to `lost`, where there is one, and stay open
    there; `step` comes by at least each tenth of a second."""
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections = {}
    while True:
        step()
        for fd, _ in epoll.poll(0.1, 512):
            if fd == listener.fileno():
                take(listener, epoll, connections)
                continue
            try:
                said = connections[fd].recv(4096)
                if said:
                    connections[fd].send(said)
                    continue
            except ConnectionError:
                if lost is not None:
                    epoll.unregister(fd)
                    lost.append(connections.pop(fd))
                    continue
            connections.pop(fd).close()


def take(listener, epoll, connections):
    """Accepts all that wait, and comes again after a while where that fails."""
    try:
        while (connection := case.accept(listener)) is not None:
            connections[connection.fileno()] = connection
            epoll.register(connection, select.EPOLLIN)
    except OSError as err:
        if err.errno != errno.EMFILE:
            raise
        time.sleep(0.01)


async def leave(option, value, address):
    """Connects, asks, waits for the answer, sets an option, and closes. Who is refused goes."""
    try:
        reader, writer = await asyncio.open_connection(case.HOST, case.PORT, local_addr=address)
    except ConnectionRefusedError:
        return
    writer.write(b"hello")
    await reader.read(64)
    writer.get_extra_info("socket").setsockopt(*option, value)
    writer.transport.abort()


async def visits_and_leavers(per_second, share, begin, end, leaver):
    """Visits at a steady rate, each for up to three seconds; between two times each is, with a
    probability, one of another kind instead."""
    begun, n, running = time.monotonic(), 0, set()
    while True:
        due = n / per_second
        await asyncio.sleep(max(0, begun + due - time.monotonic()))
        n += 1
        is_other = begin <= due < end and random.random() < share
        visit = leaver(n) if is_other else case.visit(hold=random.uniform(0, 3))
        task = asyncio.create_task(visit)
        running.add(task)
        task.add_done_callback(running.discard)


# --- incidents ---


def vanished_peers():
    """Ten visits a second; after two minutes one of fifty, by chance, is of a peer that goes without a word,
    as a telephone without reception does: the server keeps its connection for ever. It ends after 32 min."""
    end = time.monotonic() + 1_920

    def until_end():
        if end < time.monotonic():
            os._exit(0)

    def vanish(n):
        # ports that no visit has: the kernel would answer it for the connection that is still there
        address = ("127.0.0.2", 10_000 + n % 20_000)
        return leave((socket.IPPROTO_TCP, TCP_REPAIR), 1, address)

    case.child(serve, case.listen(), until_end)
    return lambda: case.come(lambda: visits_and_leavers(10, 1 / 50, 120, 1_950, vanish))


def reset_and_lost():
    """Ten visits a second; from the first minute to the fifth one of sixty, by chance, is reset by its peer,
    and the server loses it without close(2). After 5½ min it closes all of those."""
    lost, begun = [], time.monotonic()

    def close_lost():
        if 330 < time.monotonic() - begun:
            while lost:
                lost.pop().close()

    def reset(_):
        return leave((socket.SOL_SOCKET, socket.SO_LINGER), NO_LINGER, None)

    case.child(serve, case.listen(), close_lost, lost)
    return lambda: case.come(lambda: visits_and_leavers(10, 1 / 60, 60, 300, reset))


def files_not_closed():
    """A server that may have 1,024 descriptors and opens a file every 0.8 s that it never closes. After half
    a minute without any that is left it closes them."""
    files, next_file, full = [], time.monotonic(), None

    def open_one():
        nonlocal next_file, full
        now = time.monotonic()
        if full is not None and full + 30 < now:
            while files:
                os.close(files.pop())
            next_file = float("inf")
            full = None
        if now < next_file:
            return
        next_file += 0.8
        try:
            files.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as err:
            if err.errno != errno.EMFILE:
                raise
            full = full or now

    def server(listener):
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, 1_024))
        serve(listener, open_one)

    case.child(server, case.listen())
    return lambda: case.come(lambda: case.visits(10, hold=lambda: random.uniform(0, 2)))


def ports_kept():
    """4,000 local ports, and a client that opens five connections a second to one destination and keeps
    them. After half a minute without a port that is left it closes all."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
        ports.write("20000 23999")
    case.child(serve, case.listen())

    def client():
        kept, full = [], None
        for _ in case.ticks(1 / 5):
            try:
                kept.append(socket.create_connection((case.HOST, case.PORT)))
            except OSError as err:
                if err.errno != errno.EADDRNOTAVAIL:
                    raise
                full = full or time.monotonic()
                if full + 30 < time.monotonic():
                    break
        for connection in kept:
            connection.close()

    return lambda: case.child(client)


INCIDENTS = {
    incident.__name__: incident for incident in (vanished_peers, reset_and_lost, files_not_closed, ports_kept)
}

if __name__ == "__main__":
    case.main(INCIDENTS)
