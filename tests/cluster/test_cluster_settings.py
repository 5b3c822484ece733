"""What the cluster section takes and refuses."""

import pytest
from pydantic import ValidationError

from retlab.cluster_settings import ClusterSection, time_limit_seconds


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("4:00:00", 14400), ("2-00:00:00", 172800), ("1-12", 129600),
        ("1-12:30", 131400), ("UNLIMITED", None), ("0", None), (None, None), ("soon", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(limit: str | None, seconds: int | None) -> None:
    assert time_limit_seconds(limit) == seconds


def test_numbers_are_fine_where_slurm_takes_text() -> None:
    section = ClusterSection.model_validate({"time": 30, "memory": 4000, "environment": {"OMP_NUM_THREADS": 4}})
    assert (section.time, section.memory, section.environment) == ("30", "4000", {"OMP_NUM_THREADS": "4"})


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"time": "1:00"}, "signal_seconds"),
        ({"stages": {"train_model": {"time": 2}}}, "stages.train_model.time"),
        ({"environment": {"A B": "1"}}, "environment"),
        ({"modules": ["--force purge"]}, "modules"),
        ({"gpus": -1}, "gpus"),
        ({"time": "soon"}, "hours:minutes:seconds"),
        ({"time": "4h"}, "hours:minutes:seconds"),
        ({"stages": {"train_model": {"time": "1:2:3:4"}}}, "hours:minutes:seconds"),
    ],
)
def test_what_can_do_no_good_is_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        ClusterSection.model_validate(values)
