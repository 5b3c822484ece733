"""Energy and emissions of a stage, measured by CodeCarbon without a network."""

from pydantic import Field

from retlab.section import Section


class EmissionsSection(Section):
    """Whether and for which place energy and emissions are recorded."""

    enabled: bool = True
    "Record energy and emissions of every stage in runs/<name>/emissions.csv."
    country: str = Field(default="USA", pattern="^[A-Z]{3}$")
    "ISO 3166 code of three letters of the country whose electricity is used."
    region: str | None = None
    "State or province, where CodeCarbon knows it; null takes the country."
    interval_seconds: float = Field(default=15, gt=0)
    "Seconds between two measurements; a killed stage loses at most one."
