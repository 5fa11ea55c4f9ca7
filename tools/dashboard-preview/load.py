"""Servers and clients for the pictures: `load.py ROLE`, one process each, called as its role.

`blocking` and `shedding` are the same server under the same arrivals, but for one thing: the first takes one
of its permits before it accepts, the second accepts and, when no permit is free, closes at once. The others
are one kind of trouble each, and one healthy server. Each runs until it is ended.
"""

import asyncio
import math
import os
import resource
import socket
import struct
import sys
import threading
import time

PERMITS = 8
WORK = 0.1
# of arrivals; handlers end PERMITS / WORK = 80 connections each second
# so that ten minutes end at the crest of the third wave
PERIOD = 240.0
FEWEST, MOST = 10.0, 150.0
PATIENCE = 3.0
BEGAN = time.time()


def listen(port, backlog):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    server.listen(backlog)
    return server


def is_at(seconds):
    """Whether the trouble is on, for so many seconds of 150; it is when ten minutes are over."""
    return (time.time() - BEGAN + 20) % 150 < seconds


def answer(connection, work):
    connection.settimeout(1)
    try:
        connection.recv(100)
        time.sleep(work)
        connection.send(b"x")
    except OSError:
        pass
    connection.close()


def work(connection, permits):
    answer(connection, WORK)
    permits.release()


def blocking(port=8443):
    """Waits for a permit with the next connection still in the accept queue."""
    server, permits = listen(port, 128), threading.Semaphore(PERMITS)
    while True:
        permits.acquire()
        connection, _ = server.accept()
        threading.Thread(target=work, args=(connection, permits), daemon=True).start()


def shedding(port=8444):
    """Always accepts; sheds, by a reset, what it has no permit for."""
    server, permits = listen(port, 128), threading.Semaphore(PERMITS)
    while True:
        connection, _ = server.accept()
        if permits.acquire(blocking=False):
            threading.Thread(target=work, args=(connection, permits), daemon=True).start()
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def api(port=8080):
    """Healthy."""
    server = listen(port, 128)
    while True:
        threading.Thread(target=answer, args=(server.accept()[0], 0.02), daemon=True).start()


def search(port=9200):
    """Accepts nothing for 40 of 150 seconds."""
    server = listen(port, 16)
    server.settimeout(1)
    while True:
        if is_at(40):
            time.sleep(0.5)
            continue
        try:
            answer(server.accept()[0], 0)
        except OSError:
            pass


def orders(port=9000):
    """Never closes: its connections stay in CLOSE_WAIT."""
    server, kept = listen(port, 64), []
    while True:
        kept.append(server.accept()[0])


def cache(port=6379):
    """Keeps its connections open, as its clients do."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    orders(port)


def files(port=8021):
    """Has a descriptor for few connections, and closes one of two."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    server, kept = listen(port, 64), []
    while True:
        try:
            connection = server.accept()[0]
        except OSError:
            time.sleep(0.1)
            if not is_at(120):
                kept.clear()
            continue
        if len(kept) % 2:
            connection.close()
        kept.append(connection)


def statsd(port=8125):
    """Reads a datagram now and then; most find its queue full."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    receiver.bind(("0.0.0.0", port))
    while True:
        time.sleep(0.2 if is_at(40) else 0.05)
        receiver.recv(2000)


def webhook(port=9095):
    """Takes the agent's alerts."""
    server = listen(port, 16)
    while True:
        connection, _ = server.accept()
        connection.settimeout(0.5)
        try:
            while connection.recv(65536):
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                break
        except OSError:
            pass
        connection.close()


def pool(port=6379):
    """Opens connections to the cache and forgets them."""
    kept = []
    while True:
        kept.append(socket.create_connection(("127.0.0.1", port)))
        time.sleep(1)


async def ask(port, patience, is_answered=True):
    writer = None
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            if is_answered:
                await reader.read(1)
    except OSError:
        pass
    if writer:
        writer.close()


async def arrive(port, rate, is_answered=True):
    """New clients at `rate(now)` each second, whatever becomes of those before."""
    clients, due = set(), time.time()
    while True:
        due += 1 / rate(due)
        await asyncio.sleep(max(0, due - time.time()))
        client = asyncio.create_task(ask(port, PATIENCE, is_answered))
        clients.add(client)
        client.add_done_callback(clients.discard)


def wave(now):
    """Begins and ends low."""
    half = (MOST - FEWEST) / 2
    return FEWEST + half - half * math.cos(2 * math.pi * (now - BEGAN) / PERIOD)


def crowd():
    """The same arrivals for both."""

    async def both():
        await asyncio.gather(arrive(8443, wave), arrive(8444, wave))

    asyncio.run(both())


def users():
    """Of the healthy server."""
    asyncio.run(arrive(8080, lambda now: 40 + 15 * math.sin(now / 25)))


def batch():
    """Clients of the servers in trouble."""

    async def all_of_them():
        await asyncio.gather(
            arrive(9200, lambda _: 4), arrive(9000, lambda _: 0.5, is_answered=False),
            arrive(8021, lambda _: 2, is_answered=False),
        )

    asyncio.run(all_of_them())


def cron():
    """Connects to a port where nobody listens."""
    while True:
        with socket.socket() as it:
            it.connect_ex(("127.0.0.1", 7000))
        time.sleep(0.5)


def sensors():
    """Sends to statsd."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        sender.sendto(b"x" * 200, ("127.0.0.1", 8125))
        time.sleep(0.07)


def main():
    role = sys.argv[1]
    # what the starter left open would count
    os.closerange(3, 1024)
    with open("/proc/self/comm", "w") as comm:
        comm.write(role)
    if role in ("crowd", "users", "batch", "pool", "cron", "sensors"):
        time.sleep(1)
    globals()[role]()


main()
