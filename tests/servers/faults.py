"""What can go wrong between a client and an HTTP server, and a seeded plan of when it does."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

BROKEN = (
    "refused",  # the connection is reset before the request is read
    "cut request",  # the connection is reset in the middle of the request's body
    "lost answer",  # the server does what was asked, but its answer is lost
    "cut head",  # the connection ends in the middle of the answer's headers
    "cut body",  # the connection ends in the middle of the answer's body
    "reset body",  # the same, by a reset
    "error 500",
    "error 503",
    "redirect",  # to a port where nobody listens
)
"""Faults that any client notices."""

SLOW = (
    "drip",  # the answer comes whole, but in small pieces
    "stall",  # no answer, and the connection stays open
    "stall body",  # half of the answer's body, then nothing
)
"""Faults that a client with a time-out notices, but for "drip", which is only slow."""

DAMAGE = (
    "flip",  # a byte of the body is another one
    "short",  # the second half of the body is gone, and Content-Length says so
    "long",  # some bytes follow the body, and Content-Length says so
    "empty",  # no body, and Content-Length says so
    "page",  # a web page instead of the file, status 200
    "exchanged",  # the body of an earlier answer
    "other range",  # 206 with other bytes than those that were asked for
    "endless",  # a body of 2^40 bytes
    "twice",  # the whole answer twice; the second one may be taken for that to the next request
)
"""Faults of answers that only a reader who compares checksums notices for certain."""

DAMAGED_UPLOADS = (
    "flip upload",  # a byte of the request's body is another one
    "short upload",  # the second half of the request's body is gone, and Content-Length says so
)
"""Faults of requests that the server takes for what was sent."""

REFUSED = {
    "expired": ("400 Bad Request", "ExpiredToken"),
    "denied": ("403 Forbidden", "AccessDenied"),
    "full": ("507 Insufficient Storage", "XMinioStorageFull"),
}
"""Status and error code of answers that a repeated request gets again; not among ``KINDS``."""

KINDS = (*BROKEN, *SLOW, *DAMAGE, *DAMAGED_UPLOADS)

CHANGES = {*DAMAGE, *DAMAGED_UPLOADS} - {"twice"}
"""Kinds that give somebody other bytes without an error of the connection; "twice" may, or may not."""

NEEDS_BODY = {"cut body", "reset body", "drip", "stall body", *DAMAGE}
"""Kinds for answers that have a body."""

NEEDS_UPLOAD = {"cut request", *DAMAGED_UPLOADS}  # kinds for requests that have a body


def anything(method: str, target: str) -> bool:
    """Every request."""
    return True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which requests meet which fault; the same for the same requests, in whatever order they come."""

    seed: int = 0  # of all choices
    share: float = 1.0  # of the requests that meet a fault, 0 to 1
    kinds: Sequence[str] = KINDS  # to choose from; each request from those that fit it
    # faults of one method and target, so that a client that tries again gets through; -1 for no limit
    most: int = 2
    only: Callable[[str, str], bool] = anything  # whether a request (method, target) may meet one
    stall_s: float = 3.0  # how long a stalled connection stays open, seconds
    piece_s: float = 0.002  # pause between two pieces of a dripping answer, seconds

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - {*KINDS, *REFUSED}
        assert not unknown, unknown


NONE = Plan(share=0.0)  # no faults


@dataclass(frozen=True)
class Fault:
    """One fault that was injected."""

    kind: str  # one of ``KINDS``
    method: str  # of the request
    target: str  # path and query of the request
    number: int  # how many requests of this method and target came before
    # for the choices that are left, such as which byte
    chance: Random = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Path of the object, without the query."""
        return self.target.partition("?")[0]


class Dealer:
    """Deals the faults of a plan to requests, and keeps account. Safe to read from other threads.

    Attributes:
        plan: may be replaced at any time.
        injected: what happened, in this order.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.injected: list[Fault] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._hit: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def deal(self, method: str, target: str, *, upload: bool) -> Fault | None:
        """The fault of a request, if it meets one; it does not count before ``record``."""
        plan = self.plan
        with self._lock:
            number = self._seen[method, target]
            self._seen[method, target] += 1
            spent = 0 <= plan.most <= self._hit[method, target]
        # Without the number of the shared folder, which depends on the tests that ran before.
        named = target.lstrip("/-0123456789")
        chance = Random(f"{plan.seed} {method} {named} {number}")
        if spent or chance.random() >= plan.share or not plan.only(method, target):
            return None
        fitting = [
            kind
            for kind in plan.kinds
            if (upload or kind not in NEEDS_UPLOAD)
            and (method == "GET" or kind not in NEEDS_BODY)
            # obstore 0.12 reads listings whole, and ends the process where memory does not suffice for one.
            and (kind != "endless" or "?" not in target)
        ]
        return Fault(chance.choice(fitting), method, target, number, chance) if fitting else None

    def record(self, fault: Fault) -> None:
        """Count a fault."""
        with self._lock:
            self._hit[fault.method, fault.target] += 1
            self.injected.append(fault)
