"""All methods by name. A new one is a file with its options and its class, and a line here."""

from distill.methods.at import AttentionTransfer
from distill.methods.base import Method, Needs, Output, Setup, Side
from distill.methods.crd import CRD
from distill.methods.customkd import CustomKD
from distill.methods.dist import DIST
from distill.methods.dkd import DKD
from distill.methods.fitnet import FitNet, FitNetGrid
from distill.methods.kd import KD
from distill.methods.labels import Labels
from distill.methods.logits import Logits
from distill.methods.norm import NORM
from distill.methods.ofa import OFA
from distill.methods.queue_kl import QueueKL
from distill.methods.relations import CC, CCCRD, PKT, RKD, SP
from distill.methods.simkd import SimKD
from distill.methods.specmatch import SpecMatch
from distill.methods.srd import SRD
from distill.methods.tffd import TfFD

__all__ = ["METHODS", "Method", "Needs", "Output", "Setup", "Side"]

METHODS: dict[str, type[Method]] = {
    "labels": Labels,
    "fitnet": FitNet,
    "fitnet_grid": FitNetGrid,
    "kd": KD,
    "logits": Logits,
    "dkd": DKD,
    "dist": DIST,
    "ofa": OFA,
    "simkd": SimKD,
    "srd": SRD,
    "rkd": RKD,
    "cc": CC,
    "cc_crd": CCCRD,
    "sp": SP,
    "pkt": PKT,
    "crd": CRD,
    "norm": NORM,
    "at": AttentionTransfer,
    "queue_kl": QueueKL,
    "specmatch": SpecMatch,
    "tffd": TfFD,
    "customkd": CustomKD,
}
