"""All methods by name. A new one is a class in a file of its own, and a line here and in ``config.MethodName``."""

from distill.methods.base import Forward, Method, Output, Setup, Trainee
from distill.methods.customkd import CustomKD
from distill.methods.features import FeatureMatching
from distill.methods.labels import Labels
from distill.methods.probe_kd import ProbeKD

__all__ = ["METHODS", "Forward", "Method", "Output", "Setup", "Trainee"]

METHODS: dict[str, type[Method]] = {
    "labels": Labels,
    "features": FeatureMatching,
    "customkd": CustomKD,
    "probe_kd": ProbeKD,
}
