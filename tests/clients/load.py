"""A closed loop of one of Python's clients: `python load.py requests|httpx|httpx2 URL`.

Ends on SIGTERM, at the latest after 20 s, with a line of what happened; failures go to stderr.
"""

import signal
import sys
import threading
import time

kind, url = sys.argv[1:]
WORKERS = 8
counts = {"requests": 0, "failed": 0, "refused": 0, "tolerated": 0}
lock = threading.Lock()
stop = threading.Event()

# What the server waits after an answer before it closes an idle connection: its default.
SETTLE = 0.025


def client():
    if kind == "requests":
        import requests

        session = requests.Session()
        session.trust_env = False  # no proxies
        return lambda: session.get(url, timeout=10)
    import httpx

    two = kind == "httpx2"
    session = httpx.Client(http1=not two, http2=two, trust_env=False, timeout=10)
    return lambda: session.get(url)


def count(what):
    with lock:
        counts[what] += 1
        return counts[what]


def given_up(error, since_last):
    """Whether the client by its own design can't have an answer."""
    if kind == "httpx2":
        # httpx's HTTP/2 takes a GOAWAY for the end of its streams, also of those that the server has accepted and answers.
        # With /slow in flight, strace of the client:
        #   62.817 sendto    HEADERS 3
        #   63.818 recvfrom  GOAWAY last=2^31-1 error=0, PING
        #   63.8   raises    Invalid input ConnectionInputs.RECV_PING in state ConnectionState.CLOSED
        # curl has its answer, two seconds later, in the same place.
        return (
            "in state ConnectionState.CLOSED" in str(error)
            or "<ConnectionTerminated error_code:0," in str(error)
        )
    # Sent, as far as can be known here, on a connection that was quiet for longer than `settle`: the server may have closed it
    # in the moment between the client's look at the socket and its write. It can't have if all that was sooner after the
    # request before, this error included: when in between the client wrote, only it knows (its threads wait for each other).
    return since_last >= SETTLE and type(error).__name__ in (
        "ConnectionError",
        "RemoteProtocolError",
        "ReadError",
        "WriteError",
    )


def work(get):
    sent = 0.0
    while not stop.is_set():
        last, sent = sent, time.monotonic()
        try:
            response = get()
            if count("requests") == 1:
                print("started", flush=True)
            if (response.status_code, response.text) != (200, "hello\n"):
                raise ValueError(f"answered {response.status_code} {response.text[:60]!r}")
        except Exception as error:
            if "Connection refused" in str(error):
                count("refused")
                time.sleep(0.005)
            elif given_up(error, time.monotonic() - last):
                count("tolerated")
            else:
                count("failed")
                print(f"failed {type(error)} {error}\n", end="", file=sys.stderr, flush=True)


signal.signal(signal.SIGTERM, lambda *_: stop.set())
threads = [threading.Thread(target=work, args=(client(),)) for _ in range(WORKERS)]
for thread in threads:
    thread.start()
stop.wait(20)
stop.set()
for thread in threads:
    thread.join()
print(*(word for pair in counts.items() for word in pair), flush=True)
