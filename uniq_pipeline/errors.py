"""Every error a user can meet, in one tree.

    UniqError                   exit code 1
    ├── SettingError            2   a setting is wrong: its name and what is allowed
    ├── InputError              2   a file, a query or an argument cannot be used
    ├── BrokerError             3   Kafka cannot be reached or refuses
    │   └── TopicMissing        3
    ├── OffsetsLost             4   the ledger and the topic disagree: never mended silently
    │   └── TopicRecreated      4
    ├── LakeError               5   a folder or a file of the lake cannot be written or read
    │   └── FileDamaged         5
    ├── LedgerError             6
    ├── LostRace                7   another process committed first; nothing of ours was kept
    └── FaultsFound             8   an audit found something wrong

A message names the thing (topic, topic partition, offsets, file), what was found, and the setting or
command that mends it. The exit codes are part of the command line's contract (docs/commands.md).
"""


class UniqError(Exception):
    """Base of all errors that are meant to be read by a person."""

    exit_code = 1


class SettingError(UniqError):
    exit_code = 2


class InputError(UniqError):
    exit_code = 2


class BrokerError(UniqError):
    exit_code = 3


class TopicMissing(BrokerError):
    pass


class OffsetsLost(UniqError):
    exit_code = 4


class TopicRecreated(OffsetsLost):
    pass


class LakeError(UniqError):
    exit_code = 5


class FileDamaged(LakeError):
    """A file that the ledger names is missing, or not what was written. `paths`: which, in the lake, where known."""

    def __init__(self, message: str, *paths: str) -> None:
        super().__init__(message)
        self.paths = paths


class LedgerError(UniqError):
    exit_code = 6


class LostRace(UniqError):
    """Another writer moved the same offsets or window first. Harmless: the work is theirs now."""

    exit_code = 7


class FaultsFound(UniqError):
    """An audit found something wrong; its report says what, and what mends it."""

    exit_code = 8
