"""Methods and weights that ``--methods '[auto]'`` tries (docs/methods.md); of equally good ones the first is chosen."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from distill.config import DistillConfig
from distill.register import options_of


@dataclass(frozen=True)
class AutoMethod:
    """A method with some of its options."""

    name: str  # name of its folder and of its row in auto.csv
    method: str  # key of ``METHODS``
    # options that replace those of the command
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The options by dotted name."""
        return {f"{self.method}.{name}": value for name, value in self.options.items()}

    def applied(self, config: DistillConfig) -> DistillConfig:
        """The settings of a command with this method and these options."""
        options = options_of(config, self.method)
        if self.options:
            options = dataclasses.replace(options, **self.options)
        return dataclasses.replace(
            config, methods=[self.method], options={**config.options, self.method: options}
        )


FEATURES = {"norm": "standardize", "match_norm": "layernorm", "w_general": 10.0, "w_specific": 1.0}

WITH_LABELS = (
    AutoMethod("labels", "labels"),
    AutoMethod("kd-10", "kd", {"weight": 10.0}),
    AutoMethod("ofa-100", "ofa", {"weight": 100.0}),
    AutoMethod("fitnet-10", "fitnet", {"norm": "standardize", "weight": 10.0}),
    AutoMethod("fitnet-100", "fitnet", {"norm": "standardize", "weight": 100.0}),
    AutoMethod("customkd-10", "customkd", FEATURES | {"w_logits": 0.0}),
    AutoMethod("customkd-100", "customkd", FEATURES | {"w_general": 100.0, "w_specific": 10.0, "w_logits": 0.0}),
    AutoMethod("customkd-10-logits", "customkd", FEATURES | {"w_logits": 10.0, "logits_from": "probe"}),
    AutoMethod("customkd-10-custom", "customkd", FEATURES | {"w_logits": 10.0, "logits_from": "custom"}),
)  # fmt: skip
"""Of tasks with labels, from the simplest to the one with most terms."""

WITHOUT_LABELS = (
    AutoMethod("fitnet-standardize", "fitnet", {"norm": "standardize"}),
    AutoMethod("fitnet-l2", "fitnet", {"norm": "l2"}),
    AutoMethod("queue_kl", "queue_kl"),
    AutoMethod("specmatch", "specmatch"),
    AutoMethod("pkt", "pkt"),
)
"""Of task none. The loss is a single term there, whose weight an adaptive optimiser hardly notices."""
