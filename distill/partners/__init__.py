"""All partners by name. A new one is a file with its options and its class, and a line here."""

from distill.partners.adamatch import AdaMatch
from distill.partners.base import Partner
from distill.partners.dann import DANN
from distill.partners.domain_distance import DAN, DSAN, DeepCORAL
from distill.partners.pairs import Pairs
from distill.partners.pseudo_labels import FixMatch, FlexMatch, FreeMatch, PseudoLabel, SoftMatch
from distill.partners.sentry import SENTRY
from distill.partners.shot import SHOT
from distill.partners.simmatch import SimMatch

__all__ = ["PARTNERS", "Partner"]

PARTNERS: dict[str, type[Partner]] = {
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "adamatch": AdaMatch,
    "simmatch": SimMatch,
    "dan": DAN,
    "deepcoral": DeepCORAL,
    "dann": DANN,
    "dsan": DSAN,
    "sentry": SENTRY,
    "shot": SHOT,
    "pairs": Pairs,
}
