"""Writing cost models: `models/<gpu>/<model>/….json`, their schema, and the page about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from profiler.files import write_text
from profiler.readme import readme
from simulator.artifacts.artifact import Artifact
from simulator.artifacts.models import artifact_name


def export(artifact: Artifact, root: Path) -> Path:
    """Writes the artifact below `root` (a `models/` folder) and brings schema and README there up to date.

    Raises:
        UserError: `root` cannot be written.
    """
    name = artifact_name(artifact.weights, artifact.kv_cache_dtype, artifact.tensor_parallel_size, artifact.speculation)
    path = root / artifact.gpu / artifact.model / name
    write_text(path, artifact_json(artifact))
    write_text(root / "schema.json", schema_json())
    write_text(root / "README.md", readme(root))
    return path


def artifact_json(artifact: Artifact) -> str:
    """The artifact's file: the same artifact gives the same bytes."""
    return _json(artifact.model_dump(mode="json"))


def schema_json() -> str:
    """JSON schema of the artifact: `models/schema.json`."""
    return _json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Artifact.model_json_schema()})


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
