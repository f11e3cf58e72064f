"""Links from an asset page to the files that make the asset."""

from __future__ import annotations

from dagster import CodeReferencesMetadataValue, LocalFileCodeReference, UrlCodeReference

from assets.metadata import Metadata
from uniq_pipeline.config import Settings
from uniq_pipeline.queries import place_of


def references(settings: Settings, *files: str) -> Metadata:
    """Of files as the repository names them (`sql/count/window_counts.sql`).

    With `source_url` to where they can be read in a browser, else to the files on this machine.
    """
    if settings.source_url is not None:
        base = settings.source_url.rstrip("/")
        found = [UrlCodeReference(url=f"{base}/{file}", label=file) for file in files]
    else:
        found = [LocalFileCodeReference(file_path=str(place_of(file)), line_number=1, label=file) for file in files]
    return {"dagster/code_references": CodeReferencesMetadataValue(code_references=found)}
