"""Ray's environment of all actors: what a run asks for is there, or it is refused."""

from __future__ import annotations

import pytest

from tppo_rl.algorithms.ray_start import _check_environment
from tppo_rl.core.errors import OptionError


def test_what_a_running_ray_does_not_have_is_refused() -> None:
    _check_environment({}, {})
    _check_environment({"working_dir": "."}, {"working_dir": "gcs://packed.zip", "env_vars": {}})
    message = (
        r"^runtime_env=\{'py_modules': \['rewards'\]\}: Ray runs already, without py_modules; give it to ray\.init"
    )
    with pytest.raises(OptionError, match=message):
        _check_environment({"py_modules": ["rewards"]}, {"working_dir": "."})
