"""``featstore fuse``."""

import argparse
import json

from featstore.cli.arguments import names, new_folder, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.fuse import PREFIX, fuse
from featstore.text import columns

DESCRIPTION = """\
Fuse the class logits of several teams over one transfer set into one target per team (KnFu). The teams are teachers of
one store; put their stores side by side first. A team distils from its own field, fused.NAME. Soft labels leave a team,
images need not. Run the same command again to resume.

  featstore merge TEAM_A TEAM_B TEAM_C TEAMS --as teachers --names a,b,c
  featstore fuse TEAMS FUSED --beta 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "store", type=store_folder, help="folder of the store with the teams' logits"
    )
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument(
        "--rule",
        choices=["knfu", "uniform"],
        default="knfu",
        help="knfu: teams with a similar mean soft label weigh more; uniform: all weigh the same (default: knfu)",
    )
    parser.add_argument(
        "--beta",
        type=float,
        default=10.0,
        help="how selective knfu is; 0 is uniform (default: 10)",
    )
    parser.add_argument(
        "--fields", type=names, default=[], metavar="A,B", help="fields of the teams (default: all)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fuse the teams of a store; returns the exit status."""
    with progress_bar(" shards", show=not arguments.json) as progress:
        manifest, weights = fuse(
            arguments.store,
            arguments.out,
            rule=arguments.rule,
            beta=arguments.beta,
            fields=arguments.fields,
            progress=progress,
        )
    teams = [name.removeprefix(PREFIX) for name in manifest.fields]
    if arguments.json:
        table = {
            team: dict(zip(teams, row, strict=True))
            for team, row in zip(teams, weights.tolist(), strict=True)
        }
        print(json.dumps({"path": str(arguments.out), "weights": table}, indent=2))
        return 0
    rows = [
        [team, *(f"{weight:.3f}" for weight in row)]
        for team, row in zip(teams, weights.tolist(), strict=True)
    ]
    print(columns([["weights", *teams], *rows]))
    print(f"{arguments.out}: complete, {manifest.num_rows:,} rows")
    return 0
