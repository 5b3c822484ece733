"""Write configs/template_config.yaml and its JSON schema from the sections of the code:

python src/write_template.py
"""

import retlab.script_start  # noqa: F401
from retlab.artifacts import write_atomic
from retlab.config_template import render_schema, render_template
from retlab.section import PROJECT_ROOT


def main() -> None:
    """Replace both files."""
    write_atomic(PROJECT_ROOT / "configs" / "template_config.yaml", render_template())
    write_atomic(PROJECT_ROOT / "configs" / "schema.json", render_schema())


if __name__ == "__main__":
    main()
