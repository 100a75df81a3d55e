"""``featstore fuse``."""

import argparse
from typing import get_args

from featstore.cli.arguments import FIELDS, OUT, STORE, bar, choice, made, show, value
from featstore.derive.fuse import PREFIX, Rule, fuse
from featstore.display.text import columns

DESCRIPTION = """\
Fuse the class logits of several teams over one transfer set into one target per team (KnFu). The teams are teachers of
one store; put their stores side by side first. A team distils from its own field, fused.NAME. Soft labels leave a team,
images need not. Run the same command again to resume.

  featstore merge TEAM_A TEAM_B TEAM_C TEAMS --as teachers --names a,b,c
  featstore fuse TEAMS FUSED --beta 10
"""


ARGUMENTS = {
    "store": STORE,
    "out": OUT,
    "--rule": choice(
        "knfu: teams with a similar mean soft label weigh more; uniform: all weigh the same (default: knfu)",
        get_args(Rule),
        default="knfu",
    ),
    "--beta": value("how selective knfu is; 0 is uniform (default: 10)", float, default=10.0),
    "--fields": FIELDS,
}


def run(arguments: argparse.Namespace) -> int:
    """Fuse the teams of a store."""
    out = arguments.out
    with bar(arguments, " shards") as progress:
        manifest, weights = fuse(
            arguments.store,
            out,
            rule=arguments.rule,
            beta=arguments.beta,
            fields=arguments.fields or (),
            progress=progress,
        )
    teams = [name.removeprefix(PREFIX) for name in manifest.fields]
    rows = dict(zip(teams, weights.tolist(), strict=True))
    table = [[team, *(f"{weight:.3f}" for weight in row)] for team, row in rows.items()]
    lines = [
        *columns([["weights", *teams], *table]).splitlines(),
        f"{out}: complete, {manifest.num_rows:,} rows",
    ]
    values = {team: dict(zip(teams, row, strict=True)) for team, row in rows.items()}
    return show(arguments, made(out, manifest, weights=values), lines)
