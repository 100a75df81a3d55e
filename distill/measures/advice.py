"""Advice from the numbers of finished runs: is the teacher good enough to be imitated, and is the student near it?"""

from collections.abc import Sequence

from distill.measures.score import PROBE, Record, reference_of, score_of

CLEARLY = 0.05  # a difference of accuracy from which on the advice is given
FAR = 0.1  # behind the probe by so much, a student is limited by itself


def advice(records: Sequence[Record]) -> list[str]:
    """What to try next, from the teacher's linear probe; empty if there is no advice to give.

    Methods that imitate a teacher gain where its probe is clearly ahead of what labels alone reach, be it across
    domains or within one; where it is not, a partner without a teacher can do more (docs/partners.md). A student that
    stays far behind the probe gained more from larger pictures than from another method
    (docs/results/2026-11-29/why.md).
    """
    found = [reference_of(record) for record in records]
    references = [item[1] for item in found if item is not None and item[0] == PROBE]
    if (
        not references or max(references) - min(references) > CLEARLY
    ):  # several teachers or sets of labels
        return []
    teacher = sum(references) / len(references)
    own = [record for record in records if record["method"].split("+")[0] == "labels"]
    scores = [score_of(record)[1] for record in own or records]
    reached = sum(scores) / len(scores)
    shown = f"the teacher's linear probe reaches {100 * teacher:.1f} %"
    # Students that imitate a good teacher come near its probe: only those that do not can be compared with a margin.
    if teacher < reached + (CLEARLY if own else 0):
        return [
            f"{shown}, the students {100 * reached:.1f} %: little to learn from this teacher on these images. Try "
            "another teacher or --field; for unlabelled images of another domain, --methods labels --partner dan"
        ]
    if len(own) == len(records):
        return [
            f"{shown}, labels alone {100 * reached:.1f} %: methods that imitate the teacher should gain, also across "
            "domains: --methods '[kd, fitnet, customkd]'"
        ]
    best = max(score_of(record)[1] for record in records)
    if best + FAR < teacher:
        return [
            f"{shown}, the best student {100 * best:.1f} %: the student is the limit, not the teacher. Try larger "
            "pictures (--student.image_size), more --train.epochs, a larger student, or --methods '[auto]'"
        ]
    return []
