"""All methods by name. A new one is a file with its options and its class, and a line here."""

from distill.methods.assist import Assist
from distill.methods.autodistil import AutoDistil
from distill.methods.base import Method, Needs, Output, Setup, Side, VectorMethod
from distill.methods.crd import CRD
from distill.methods.customkd import CustomKD
from distill.methods.features import AttentionTransfer, FitNet, FitNetGrid
from distill.methods.kd3 import KD3
from distill.methods.labels import Labels
from distill.methods.logits import DIST, DKD, KD, OFA, Logits
from distill.methods.norm import NORM
from distill.methods.pointdistiller import PointDistiller
from distill.methods.queue_kl import QueueKL
from distill.methods.relations import CC, CCCRD, PKT, RKD, SP
from distill.methods.specmatch import SpecMatch
from distill.methods.teacher_head import SRD, SimKD
from distill.methods.tffd import TfFD
from distill.methods.tinysam import TinySAM
from distill.methods.vlm_ood import VLMOOD, Embedding

__all__ = ["METHODS", "Method", "Needs", "Output", "Setup", "Side", "VectorMethod"]

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
    "embedding": Embedding,
    "kd3": KD3,
    "vlm_ood": VLMOOD,
    "assist": Assist,
    "tinysam": TinySAM,
    "autodistil": AutoDistil,
    "pointdistiller": PointDistiller,
    "customkd": CustomKD,
}
