"""Nothing is lost, whatever breaks: 8 streams, 200 events/s in all, from the daemon to a subscriber at QoS 1.

In 10 minutes the broker is killed and restarted 20 times, the daemon is ended by SIGKILL 20 times and the link
between them (a network namespace's) is cut 10 times, at random moments from a seed that is printed. How a
broker is killed so that its own losses are not counted as the daemon's is told in `tests/support/trial.py`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT))

from tests.support.faults import Kind
from tests.support.trial import Outcome, try_delivery

QUICK_S = 32.0


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--seed", type=int, help="what breaks when; default: another one each time")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    seconds = QUICK_S if args.quick else args.minutes * 60.0
    print(f"seed {seed}, {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        conclude(seed, seconds, try_delivery(Path(folder), seed, seconds, faults(seconds)))


def faults(seconds: float) -> dict[str, Kind]:
    """Twenty, twenty and ten in ten minutes; two of a kind at least."""
    share = seconds / 600.0
    return {
        "broker": Kind(max(2, round(20 * share)), 5.0),
        "agent": Kind(max(2, round(20 * share)), 3.0),
        "link": Kind(max(2, round(10 * share)), 12.0),
    }


def conclude(seed: int, seconds: float, outcome: Outcome) -> None:
    verdict = outcome.verdict
    print(f"{outcome}")
    if outcome.left_out:
        print(f"the link was not cut: {outcome.left_out}")
    figures = {
        "seed": float(seed),
        "minutes": seconds / 60.0,
        "events_per_s": outcome.per_s,
        **{f"{kind}_faults": float(count) for kind, count in outcome.faults.items()},
        **{name: float(value) for name, value in verdict._asdict().items()},
        "caught_up_s": outcome.caught_up_s,
    }
    zero = dict.fromkeys(verdict._fields[2:], "= 0")
    common.conclude("nothing_lost", figures, zero, verdict.is_faultless)


if __name__ == "__main__":
    main()
