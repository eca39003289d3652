"""A configuration file with its groups and overrides, as Hydra composes them: plain values that no schema has seen yet."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from simulator.errors import UserError

CONF = Path(__file__).resolve().parent.parent / "conf"
"""The shipped configurations and their groups: always on the search path."""


def compose_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The values of the file `path` with its groups and the overrides, as Hydra composes them; no schema has seen them yet.

    Raises:
        UserError: the file or an override is not readable.
    """
    _check_file(path)
    import yaml  # type: ignore[import-untyped]
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = path.resolve().parent
    parsed = [_override(text, (folder, CONF)) for text in overrides]
    shipped = str(CONF).replace("\\", "\\\\").replace("'", "\\'")
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(folder), version_base="1.3"):
            # A defaults list without `_self_` means what everyone expects: the file wins over its groups.
            warnings.simplefilter("ignore", UserWarning)
            composed = compose(path.stem, overrides=[f"hydra.searchpath=['file://{shipped}']", *parsed])
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {_flat(error)}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected keys such as command, model, gpu, workload; it holds a list")
    return {str(key): value for key, value in plain.items()}


def _check_file(path: Path) -> None:
    if path.suffix != ".yaml":
        raise UserError(f"{path}: a configuration is a file that ends in .yaml; shipped ones: {_shipped()}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; shipped configurations: {_shipped()}")
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({_flat(error)})") from None


def _shipped() -> str:
    commands = [path.name for path in sorted(CONF.glob("*.yaml")) if re.search("^command:", path.read_text(encoding="utf-8"), re.MULTILINE)]
    return ", ".join(f"conf/{name}" for name in commands)


def _override(text: str, folders: tuple[Path, ...]) -> str:
    """The override in Hydra's grammar: groups as they are; keys may be new, for the schema knows them, not the file."""
    match = re.fullmatch(r"(?P<sign>[+~]{0,2})(?P<key>[\w./@:-]+)(?P<value>=.*)?", text, re.DOTALL)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        raise UserError(f"override '{text}': write key=value, such as workload.arrivals.rate=25 or workload=aime24")
    if re.match(r"hydra\b", match["key"]):
        raise UserError(f"override '{text}': Hydra's own settings change nothing here")
    if match["sign"] or any((folder / match["key"]).is_dir() for folder in folders):
        return f"~{match['key']}" if match["value"] == "=null" else text
    return f"++{text}"


def _explain(error: Exception) -> str:
    """Hydra's explanation in one line, without what only its own command line can do."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, OverrideParseException):
        return f"override '{error.override.lstrip('+')}' is malformed; quote a value with special characters: key='…'"
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or _flat(error).rpartition(" ")[2])
        return f"{key} has no value; give one, such as {key}=…"
    text = _flat(error).replace("'++", "'")
    named = text.partition("'")[2].partition("'")[0]
    if "--multirun" in text:
        return f"override '{named}': give one value; a list is written key=[a,b]"
    if "No match in the defaults list" in text:
        return f"override of '{named}': the file has no such entry in its defaults; add one, or write +{named}=…"
    return re.sub(r" (See https?://|Config search path:).*$", "", text)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


def merged(overrides: list[str], changes: list[str]) -> list[str]:
    """Both, where the later of two for the same key is the one that holds."""
    keys = {_key(text) for text in changes}
    return [*(text for text in overrides if _key(text) not in keys), *changes]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
