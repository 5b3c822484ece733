"""Put evaluated runs side by side: table, samples of the same prompt, and where everything lies.

python src/compare_runs.py RUN_FOLDER [RUN_FOLDER ...]
"""

import signal
import sys
from pathlib import Path

from retlab.command import Parser
from retlab.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from retlab.evaluation.summary import read_run, summary


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    parser = Parser("%(prog)s RUN_FOLDER [RUN_FOLDER ...]")
    parser.add_argument("runs", metavar="RUN_FOLDER", type=Path, nargs="*", help="a run folder with results.json")
    try:
        options, unknown = parser.parse_known_args(arguments)
        parser.refuse_unknown(unknown, ["RUN_FOLDER"])
        if not options.runs:
            raise UserError("command line: RUN_FOLDER is missing; name evaluated runs, such as runs/quickstart-retnet")
        print(summary([read_run(folder) for folder in options.runs]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_OK


if __name__ == "__main__":
    # Into `head` or a pager that is left, the table ends as that of any other command does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
