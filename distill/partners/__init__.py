"""All partners by name. A new one is a file with its options and its class, and a line here."""

from distill.partners.adamatch import AdaMatch
from distill.partners.base import Partner
from distill.partners.dan import DAN
from distill.partners.dann import DANN
from distill.partners.deepcoral import DeepCORAL
from distill.partners.dsan import DSAN
from distill.partners.fixmatch import FixMatch
from distill.partners.flexmatch import FlexMatch
from distill.partners.freematch import FreeMatch
from distill.partners.pseudo_label import PseudoLabel
from distill.partners.sentry import SENTRY
from distill.partners.shot import SHOT
from distill.partners.simmatch import SimMatch
from distill.partners.softmatch import SoftMatch

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
}
