"""Where settings come from beside the environment: files with one secret each, and the TOML file.

A setting that is a secret may be given as the name of a file that holds it: `UNIQ_<NAME>_FILE` in the environment, or
`<name>_file` in the TOML file. That is how Docker, Kubernetes and systemd hand secrets over.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from uniq_pipeline.errors import SettingError

ENV_PREFIX = "UNIQ_"
CONFIG_VARIABLE = "UNIQ_CONFIG"
DEFAULT_CONFIG_FILE = "uniq-pipeline.toml"
FILE_SUFFIX = "_file"

# A certificate chain has some kilobytes; a longer secret is a wrong path.
LONGEST_SECRET_BYTES = 65_536


def variable_of(name: str) -> str:
    """`UNIQ_LG_K` of `lg_k`."""
    return f"{ENV_PREFIX}{name.upper()}"


def is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *typing.get_args(field.annotation))


def secret_names(settings: type[BaseSettings]) -> list[str]:
    """Names of the settings that are never shown, and may be in a file."""
    return [name for name, field in settings.model_fields.items() if is_secret(field)]


def known_variables(settings: type[BaseSettings]) -> set[str]:
    """Every variable with our prefix that means something."""
    names = {*settings.model_fields, *(name + FILE_SUFFIX for name in secret_names(settings))}
    return {variable_of(name) for name in names} | {CONFIG_VARIABLE}


def config_file() -> Path | None:
    """The TOML file that would be read, or None."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    default = Path(DEFAULT_CONFIG_FILE)
    return default if default.is_file() else None


class SecretFiles(PydanticBaseSettingsSource):
    """Files named by `UNIQ_<NAME>_FILE`, for every setting that is a secret."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        environment = {name.upper(): value for name, value in os.environ.items()}
        names = [name for secret in secret_names(self.settings_cls) for name in (secret, secret + FILE_SUFFIX)]
        given = {name: environment[variable_of(name)] for name in names if variable_of(name) in environment}
        return _with_secrets_read(given, self.settings_cls, variable_of)


class TomlFile(PydanticBaseSettingsSource):
    """The TOML file as a source, so that an unknown key in it is an error like any other."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = config_file()
        if path is None:
            return {}
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(f"settings file {path}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"settings file {path}: not valid TOML: {error}") from None
        return _with_secrets_read(given, self.settings_cls, lambda name: f"{name} in {path}")


def _with_secrets_read(
    given: Mapping[str, Any], settings: type[BaseSettings], shown: Callable[[str], str]
) -> dict[str, Any]:
    """What was given, with the content of a file in place of its name. Raises SettingError."""
    values = dict(given)
    for name in secret_names(settings):
        if name + FILE_SUFFIX not in values:
            continue
        path, setting = values.pop(name + FILE_SUFFIX), shown(name + FILE_SUFFIX)
        if name in values:
            raise SettingError(f"setting {setting}: {shown(name)} is given, too; only one of them may be")
        if not isinstance(path, str) or not path:
            raise SettingError(f"setting {setting}: the path of a file that holds the secret is needed")
        values[name] = read_secret(Path(path), setting)
    return values


def read_secret(path: Path, setting: str) -> str:
    """The secret in a file, without newlines at its end. Raises SettingError that names the setting and the file."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_SECRET_BYTES + 1)
    except OSError as error:
        raise SettingError(f"setting {setting}: {path} cannot be read: {error.strerror}") from None
    except ValueError:  # a path with a zero byte in it
        raise SettingError(f"setting {setting}: {str(path)!r} is not a path") from None
    if len(content) > LONGEST_SECRET_BYTES:
        raise SettingError(f"setting {setting}: {path} is longer than {LONGEST_SECRET_BYTES:,} bytes: no secret")
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SettingError(f"setting {setting}: {path} is not a text in UTF-8") from None
    if not secret.strip():
        raise SettingError(f"setting {setting}: {path} is empty; write the secret into it")
    return secret
