"""The loss of a step: terms of the task, the method and the partner from one forward pass."""

from torch import Tensor

from distill.data.pictures import Batch
from distill.methods import Method, Output
from distill.training.run_parts import RunParts
from featstore.errors import ConfigError


def loss_terms(run: RunParts, batch: Batch, epoch: int) -> dict[str, Tensor]:
    """The loss, by weighted terms; in the final fine-tuning only the supervised ones count."""
    supervised, others = _all_terms(run, batch, epoch)
    if epoch < run.config.train.epochs - run.config.train.finetune_epochs:
        return supervised | others
    if not supervised:
        raise ConfigError(
            f"--train.finetune_epochs {run.config.train.finetune_epochs}: {run.name} has no supervised loss in "
            "this epoch, so nothing is left to train by. Set it to 0."
        )
    # Times zero, so that every parameter still has a gradient in distributed training.
    return supervised | {name: 0 * term for name, term in others.items()}


def _all_terms(
    run: RunParts, batch: Batch, epoch: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss, by weighted terms, from one forward pass over all images of the batch: supervised, and the rest."""
    inputs: dict[str, Tensor] = {}
    for part in run.parts:
        inputs |= part.inputs(batch)
    output: Output = run.model(batch.images, inputs)
    labelled, unlabelled = batch.num_labelled, batch.num_unlabelled
    both = labelled + unlabelled
    plain = output.rows(0, both)
    terms = run.method.loss(plain, batch, run.student)
    if not run.task.supervised:
        terms.pop("ce", None)
        # Times zero, so that every parameter has a gradient in distributed training.
        first = next(iter(terms))
        terms[first] = terms[first] + 0 * output.features.float().mean()
    # A method that overrides ``loss`` says itself how classes are learnt.
    alone = run.task.classes and type(run.method).loss is not Method.loss
    # First, so that the sum over the terms does not depend on who made them.
    supervised = {
        name: terms.pop(name, term)
        for name, term in run.task.loss(plain, batch).items()
        if name in terms or not alone
    }
    terms.pop("ce", None)  # of a method that knows classes alone
    if run.partner is None:
        return supervised, terms
    if not run.partner.uses_labels(epoch):
        supervised = {}
    strong = [
        output.rows(both + copy * unlabelled, both + (copy + 1) * unlabelled)
        for copy in range(batch.num_strong)
    ]
    added = run.partner.loss(output.rows(0, labelled), output.rows(labelled, both), strong, batch)
    return supervised, terms | {f"partner/{name}": term for name, term in added.items()}
