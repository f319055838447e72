"""The one exception family. Its messages carry the fix; only `cli/` turns them into exit codes."""

from __future__ import annotations


class MoeModelError(Exception):
    """Anything that the user can mend: the message names the place, what was found and what is allowed."""


class InputError(MoeModelError):
    """A file, key or option that is not what it should be."""


class InfeasiblePlanError(MoeModelError):
    """A plan that is well-formed but cannot run: it does not divide, or does not fit in memory."""


class DeviceError(MoeModelError):
    """The hardware at hand is not the hardware asked for, or refuses what was asked of it."""


class ProfileError(MoeModelError):
    """A profile that is missing, truncated, or of another schema version."""


class CalibrationError(MoeModelError):
    """A calibration that is missing, malformed, of another schema version, or for another GPU."""


class MissingExtraError(MoeModelError, ImportError):
    """What was asked for needs a package that one of this package's extras installs."""
