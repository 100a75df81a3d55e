"""The options of every method and partner, one dataclass each; a new one is a field and a name here."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from distill.options.adaptation import (
    DANConfig,
    DANNConfig,
    DeepCORALConfig,
    DSANConfig,
    SENTRYConfig,
    SHOTConfig,
)
from distill.options.customkd import CustomKDConfig
from distill.options.features import (
    ATConfig,
    CCConfig,
    CCCRDConfig,
    CRDConfig,
    FitNetConfig,
    FitNetGridConfig,
    NORMConfig,
    PKTConfig,
    QueueKLConfig,
    RKDConfig,
    SPConfig,
    SpecMatchConfig,
    TfFDConfig,
)
from distill.options.logits import (
    DISTConfig,
    DKDConfig,
    KDConfig,
    LogitsConfig,
    OFAConfig,
    SimKDConfig,
    SRDConfig,
)
from distill.options.semisupervised import (
    AdaMatchConfig,
    FixMatchConfig,
    FlexMatchConfig,
    FreeMatchConfig,
    PseudoLabelConfig,
    SimMatchConfig,
    SoftMatchConfig,
)

MethodName = Literal[
    "labels",
    "fitnet",
    "fitnet_grid",
    "kd",
    "logits",
    "dkd",
    "dist",
    "ofa",
    "simkd",
    "srd",
    "rkd",
    "cc",
    "cc_crd",
    "sp",
    "pkt",
    "crd",
    "norm",
    "at",
    "queue_kl",
    "specmatch",
    "tffd",
    "customkd",
]
PartnerName = Literal[
    "none",
    "pseudo_label",
    "fixmatch",
    "flexmatch",
    "freematch",
    "softmatch",
    "adamatch",
    "simmatch",
    "dan",
    "deepcoral",
    "dann",
    "dsan",
    "sentry",
    "shot",
]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options by method."""

    customkd: CustomKDConfig = dataclasses.field(default_factory=CustomKDConfig)
    fitnet: FitNetConfig = dataclasses.field(default_factory=FitNetConfig)
    fitnet_grid: FitNetGridConfig = dataclasses.field(default_factory=FitNetGridConfig)
    kd: KDConfig = dataclasses.field(default_factory=KDConfig)
    logits: LogitsConfig = dataclasses.field(default_factory=LogitsConfig)
    dkd: DKDConfig = dataclasses.field(default_factory=DKDConfig)
    dist: DISTConfig = dataclasses.field(default_factory=DISTConfig)
    ofa: OFAConfig = dataclasses.field(default_factory=OFAConfig)
    simkd: SimKDConfig = dataclasses.field(default_factory=SimKDConfig)
    srd: SRDConfig = dataclasses.field(default_factory=SRDConfig)
    rkd: RKDConfig = dataclasses.field(default_factory=RKDConfig)
    cc: CCConfig = dataclasses.field(default_factory=CCConfig)
    cc_crd: CCCRDConfig = dataclasses.field(default_factory=CCCRDConfig)
    sp: SPConfig = dataclasses.field(default_factory=SPConfig)
    pkt: PKTConfig = dataclasses.field(default_factory=PKTConfig)
    crd: CRDConfig = dataclasses.field(default_factory=CRDConfig)
    norm: NORMConfig = dataclasses.field(default_factory=NORMConfig)
    at: ATConfig = dataclasses.field(default_factory=ATConfig)
    queue_kl: QueueKLConfig = dataclasses.field(default_factory=QueueKLConfig)
    specmatch: SpecMatchConfig = dataclasses.field(default_factory=SpecMatchConfig)
    tffd: TfFDConfig = dataclasses.field(default_factory=TfFDConfig)


@dataclass(frozen=True, kw_only=True)
class PartnerOptions:
    """Options by partner."""

    pseudo_label: PseudoLabelConfig = dataclasses.field(default_factory=PseudoLabelConfig)
    fixmatch: FixMatchConfig = dataclasses.field(default_factory=FixMatchConfig)
    flexmatch: FlexMatchConfig = dataclasses.field(default_factory=FlexMatchConfig)
    freematch: FreeMatchConfig = dataclasses.field(default_factory=FreeMatchConfig)
    softmatch: SoftMatchConfig = dataclasses.field(default_factory=SoftMatchConfig)
    adamatch: AdaMatchConfig = dataclasses.field(default_factory=AdaMatchConfig)
    simmatch: SimMatchConfig = dataclasses.field(default_factory=SimMatchConfig)
    dan: DANConfig = dataclasses.field(default_factory=DANConfig)
    deepcoral: DeepCORALConfig = dataclasses.field(default_factory=DeepCORALConfig)
    dann: DANNConfig = dataclasses.field(default_factory=DANNConfig)
    dsan: DSANConfig = dataclasses.field(default_factory=DSANConfig)
    sentry: SENTRYConfig = dataclasses.field(default_factory=SENTRYConfig)
    shot: SHOTConfig = dataclasses.field(default_factory=SHOTConfig)
